//! Patches: of JSON in general, and the strategic ones, in which elements of lists have names.

use serde_json::{Map, Value};

/// By which field the elements of a list are told apart, for the lists that are merged.
const KEYS: &[(&str, &[&str])] = &[
    ("containers", &["name"]),
    ("initContainers", &["name"]),
    ("volumes", &["name"]),
    ("env", &["name"]),
    ("imagePullSecrets", &["name"]),
    ("secrets", &["name"]),
    ("ports", &["containerPort", "port"]),
    ("volumeMounts", &["mountPath"]),
    ("topologySpreadConstraints", &["topologyKey"]),
    ("hostAliases", &["ip"]),
    ("ownerReferences", &["uid"]),
    ("conditions", &["type"]),
];

pub(super) fn patched(object: &Value, patch: &Value, strategic: bool) -> Value {
    let Value::Object(patch) = patch else { return patch.clone() };
    let mut fields = object.as_object().cloned().unwrap_or_default();
    if strategic && patch.get("$patch").is_some_and(|how| how == "replace") {
        fields = Map::new();
    }
    for (name, value) in patch {
        if let Some(list) = name.strip_prefix("$deleteFromPrimitiveList/") {
            if let Some(Value::Array(elements)) = fields.get_mut(list) {
                elements.retain(|element| !value.as_array().is_some_and(|gone| gone.contains(element)));
            }
        } else if name == "$retainKeys" {
            let kept = value.as_array().cloned().unwrap_or_default();
            fields.retain(|field, _| kept.iter().any(|name| name == field));
        } else if name.starts_with('$') {
            // The order of a list, and what was looked at above.
        } else if value.is_null() {
            fields.remove(name);
        } else {
            let before = fields.get(name).unwrap_or(&Value::Null);
            let after = match (before, value, key(name, value)) {
                (Value::Array(before), Value::Array(patches), Some(key)) if strategic => {
                    merged(before, patches, key)
                }
                _ => patched(before, value, strategic),
            };
            fields.insert(name.clone(), after);
        }
    }
    Value::Object(fields)
}

fn key(list: &str, patches: &Value) -> Option<&'static str> {
    let (_, keys) = KEYS.iter().find(|(name, _)| *name == list)?;
    let named =
        |key: &&&str| patches.as_array().is_some_and(|all| all.iter().all(|one| one.get(**key).is_some()));
    keys.iter().find(named).copied()
}

fn merged(before: &[Value], patches: &[Value], key: &str) -> Value {
    let mut elements = before.to_vec();
    for patch in patches {
        let at = elements.iter().position(|element| element[key] == patch[key]);
        if patch["$patch"] == "delete" {
            at.map(|at| elements.remove(at));
            continue;
        }
        match at {
            Some(at) => elements[at] = patched(&elements[at], patch, true),
            None => elements.push(patched(&Value::Null, patch, true)),
        }
    }
    Value::Array(elements)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn elements_of_lists_are_found_by_their_names() {
        let object = json!({"replicas": 1, "old": 1, "containers": [
            {"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "1"}]},
            {"name": "b"},
        ], "args": ["x", "y"]});
        let patch = json!({"replicas": 3, "old": null, "$setElementOrder/containers": [{"name": "a"}], "containers": [
            {"name": "a", "image": "2", "env": [{"name": "X", "$patch": "delete"}, {"name": "Z", "value": "2"}]},
            {"name": "b", "$patch": "delete"},
        ], "args": ["z"]});
        let after = json!({"replicas": 3, "containers": [
            {"name": "a", "image": "2", "env": [{"name": "Y", "value": "1"}, {"name": "Z", "value": "2"}]},
        ], "args": ["z"]});
        assert_eq!(patched(&object, &patch, true), after);
    }

    #[test]
    fn a_plain_patch_replaces_lists() {
        let object = json!({"spec": {"volumes": [{"name": "a"}], "x": {"kept": 1}}});
        let patch = json!({"spec": {"volumes": [{"name": "b"}], "x": {"new": 2}}});
        let after = json!({"spec": {"volumes": [{"name": "b"}], "x": {"kept": 1, "new": 2}}});
        assert_eq!(patched(&object, &patch, false), after);
    }
}

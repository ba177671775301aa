//! Which objects are meant.

use serde_json::Value;

use super::Refusal;

/// Conditions on labels and fields, all of which have to hold.
#[derive(Debug, Clone)]
pub(super) struct Selectors(Vec<Condition>);

#[derive(Debug, Clone)]
struct Condition {
    /// As of a JSON pointer.
    path: String,
    value: String,
    equal: bool,
}

impl Selectors {
    pub(super) fn of(query: &[(String, String)]) -> Result<Self, Refusal> {
        let mut conditions = Vec::new();
        for (name, text) in query {
            let is_label = match name.as_str() {
                "labelSelector" => true,
                "fieldSelector" => false,
                _ => continue,
            };
            for part in text.split(',').filter(|part| !part.is_empty()) {
                let (key, value, equal) = part
                    .split_once("!=")
                    .map(|(key, value)| (key, value, false))
                    .or_else(|| {
                        part.split_once('=').map(|(key, value)| (key, value.trim_start_matches('='), true))
                    })
                    .ok_or_else(|| Refusal::invalid(&format!("a selector of another kind: {part}")))?;
                let path = if is_label {
                    format!("/metadata/labels/{}", key.replace('/', "~1"))
                } else {
                    format!("/{}", key.replace('.', "/"))
                };
                conditions.push(Condition { path, value: value.to_owned(), equal });
            }
        }
        Ok(Self(conditions))
    }

    pub(super) fn match_with(&self, object: &Value) -> bool {
        self.0.iter().all(|Condition { path, value, equal }| {
            (object.pointer(path).and_then(Value::as_str) == Some(value)) == *equal
        })
    }
}

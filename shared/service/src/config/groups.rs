//! Reads `groups` and `projects`, and finds what is there twice.

use std::collections::{BTreeMap, HashMap};

use keyfleet_core::id::{Group as GroupName, KeyId, Model, ProjectId};
use sha2::{Digest, Sha256};

use super::layers::{KEYS, KEYS_FILE};
use super::limits::limits;
use super::options::model;
use super::place::{Origin, Path};
use super::print::{HIDDEN, quoted, without_user};
use super::problem::Problem;
use super::reader::{Field, Section};
use super::schema::{AuthMode, Group, Key, Project, Secret};
use super::server::label;

const TARGET_URL: &str = "https://generativelanguage.googleapis.com/v1beta/openai/";
const MAX_WEIGHT: u32 = 1_000_000;
const AUTH_MODES: [(&str, AuthMode); 3] =
    [("auto", AuthMode::Auto), ("bearer", AuthMode::Bearer), ("api_key", AuthMode::ApiKey)];

/// What has been seen so far, over all groups.
#[derive(Default)]
pub(super) struct Seen {
    keys: HashMap<Secret, (Origin, Option<ProjectId>)>,
    ids: HashMap<KeyId, Origin>,
    groups: HashMap<String, Origin>,
    /// Projects that were named, and where first.
    named: BTreeMap<ProjectId, Origin>,
    /// Keys that are a project of their own: that project's name is the key's.
    alone: Vec<(ProjectId, Path, Origin)>,
}

/// The options that name a key and its project, where they are set.
#[derive(Clone, Copy, Default)]
struct Named<'f, 'c> {
    id: Option<&'f Field<'c>>,
    project: Option<&'f Field<'c>>,
}

/// The public name of a key that was given none.
pub fn fingerprint(secret: &str) -> KeyId {
    use std::fmt::Write as _;
    let digest = Sha256::digest(secret.as_bytes());
    let mut id = String::from("key-");
    for byte in &digest[..5] {
        let _infallible = write!(id, "{byte:02x}");
    }
    KeyId::new(id)
}

pub(super) fn read(list: &Field<'_>, seen: &mut Seen) -> Vec<Group> {
    let groups = list.elements().iter().filter_map(|entry| group(entry, seen)).collect::<Vec<_>>();
    if !list.is_set() {
        list.show("[]");
    }
    groups
}

/// The keys of [`KEYS`] or [`KEYS_FILE`]: a group `default`, or, beside the groups of a file, in a group `env`.
pub(super) fn from_variables(
    list: &Field<'_>,
    variables: &BTreeMap<String, String>,
    groups: &mut Vec<Group>,
    seen: &mut Seen,
) {
    let set = |name: &str| variables.get(name).filter(|text| !text.trim().is_empty());
    let at = |name: &str| list.elsewhere(Path::default(), Origin::Env(name.to_owned()));
    let places: Vec<(Origin, String)> = match (set(KEYS), set(KEYS_FILE)) {
        (None, None) => return,
        (Some(_), Some(_)) => {
            return at(KEYS_FILE).problem(format_args!("{KEYS} is set as well; remove one of the two"));
        }
        (Some(keys), None) => {
            let keys = keys.split([',', '\n']).map(str::trim).filter(|key| !key.is_empty());
            keys.map(|key| (Origin::Env(KEYS.to_owned()), key.to_owned())).collect()
        }
        (None, Some(file)) => match at(KEYS_FILE).content(file.trim()) {
            None => return,
            Some((content, path)) => lines(&content, &path).collect(),
        },
    };
    let name = if groups.is_empty() { "default" } else { "env" };
    let index = groups.iter().position(|g| g.name.as_str() == name).unwrap_or_else(|| {
        let origin = Origin::Env(if set(KEYS).is_some() { KEYS } else { KEYS_FILE }.to_owned());
        list.elsewhere(list.path.index(groups.len()).name("name"), origin).show(name);
        groups.push(Group {
            name: GroupName::new(name),
            keys: Vec::new(),
            target_url: TARGET_URL.to_owned(),
            proxy_url: None,
            model_aliases: BTreeMap::new(),
            models: Vec::new(),
            priority: 0,
            weight: 1,
            limits: Vec::new(),
        });
        groups.len() - 1
    });
    let path = list.path.index(index).name("api_keys");
    let inherited = Inherited { auth_mode: AuthMode::Auto, proxy_url: groups[index].proxy_url.clone() };
    for (origin, text) in places {
        let field = list.elsewhere(path.index(groups[index].keys.len()), origin);
        let key = plain(&field, &text, &inherited, seen);
        groups[index].keys.extend(key);
    }
}

/// The secrets of a file: one per line, comments after `#`.
pub(super) fn lines<'t>(
    content: &'t str,
    file: &'t std::path::Path,
) -> impl Iterator<Item = (Origin, String)> + 't {
    let name: std::sync::Arc<str> = file.display().to_string().into();
    content.lines().enumerate().filter_map(move |(i, line)| {
        let key = line.split_once(" #").map_or(line, |(key, _)| key).trim();
        let origin = Origin::File { name: name.clone(), line: i + 1 };
        (!key.is_empty() && !key.starts_with('#')).then(|| (origin, key.to_owned()))
    })
}

fn group(entry: &Field<'_>, seen: &mut Seen) -> Option<Group> {
    let mut s = entry.entry()?;
    let name_field = s.field("name");
    if !name_field.is_set() {
        entry.problem("`name` is missing; add it");
    }
    let name = label(&name_field);
    if let Some(name) = &name {
        name_field.show(quoted(name));
        if let Some(first) = seen.groups.insert(name.clone(), name_field.origin.clone()) {
            let first = name_field.origin.refer_to(&first);
            name_field.problem(format_args!("another group has this name (at {first}); choose another"));
        }
    }
    let target_url = target_url(&s.field("target_url"));
    let proxy_url = proxy_url(&mut s);
    let auth_mode = s.choice("auth_mode", &AUTH_MODES);
    let priority = s.number("priority", 0..=u32::MAX, 0);
    let weight = s.number("weight", 1..=MAX_WEIGHT, 1);
    let models = s.texts("models").iter().filter_map(|(text, field)| model(text, field)).collect::<Vec<_>>();
    let model_aliases = aliases(&s.field("model_aliases"));
    let limits = limits(&s.field("limits"));
    let inherited = Inherited { auth_mode, proxy_url: proxy_url.clone() };
    let keys = keys(&mut s, &inherited, seen);
    s.finish();
    Some(Group {
        name: GroupName::new(name?),
        keys,
        target_url,
        proxy_url,
        model_aliases,
        models: models.iter().map(|m| m.as_str().to_owned()).collect(),
        priority,
        weight,
        limits,
    })
}

fn target_url(field: &Field<'_>) -> String {
    let url = field.text().filter(|t| !t.is_empty()).and_then(|text| field.url(&text, &["http", "https"]));
    let Some(mut url) = url else {
        field.show(quoted(TARGET_URL));
        return TARGET_URL.to_owned();
    };
    if !url.username().is_empty()
        || url.password().is_some()
        || url.query().is_some()
        || url.fragment().is_some()
    {
        field.problem(
            "holds a user, a query or a fragment; give scheme://host/path only, keys belong in `api_keys`",
        );
        return TARGET_URL.to_owned();
    }
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    field.show(quoted(url.as_str()));
    url.into()
}

pub(super) fn proxy_url(s: &mut Section<'_>) -> Option<Secret> {
    let (secret, field) = s.secret("proxy_url")?;
    let url = field.url(secret.expose(), &["http", "https", "socks5", "socks5h"])?;
    field.show(quoted(&without_user(&url)));
    Some(secret)
}

fn aliases(field: &Field<'_>) -> BTreeMap<Model, Model> {
    let mut aliases = BTreeMap::new();
    for (alias, to) in field.entries() {
        let target = to.name().and_then(|text| model(&text, &to));
        if let (Some(alias), Some(target)) = (model(&alias, &to), target) {
            to.show(quoted(target.as_str()));
            aliases.insert(alias, target);
        }
    }
    aliases
}

/// What a key takes over from its group.
struct Inherited {
    auth_mode: AuthMode,
    proxy_url: Option<Secret>,
}

fn keys(s: &mut Section<'_>, inherited: &Inherited, seen: &mut Seen) -> Vec<Key> {
    let mut keys = Vec::new();
    let list = s.field("api_keys");
    let elements = list.elements();
    let mut given = elements.len();
    for entry in &elements {
        keys.extend(if entry.is_text() {
            entry.text().and_then(|text| plain(entry, &text, inherited, seen))
        } else {
            key(entry, inherited, seen)
        });
    }
    let file = s.field("api_keys_file");
    if let Some((content, path)) = file.name().and_then(|name| file.content(&name)) {
        file.show(quoted(&path.display().to_string()));
        for (origin, text) in lines(&content, &path) {
            let place = list.elsewhere(list.path.index(given), origin);
            given += 1;
            keys.extend(plain(&place, &text, inherited, seen));
        }
    }
    if given == 0 && !list.has_mistake() && !file.has_mistake() {
        s.field.problem("the group has no key; add `api_keys` or `api_keys_file`, or remove the group");
    }
    keys
}

/// A key that is nothing but its secret.
fn plain(field: &Field<'_>, text: &str, inherited: &Inherited, seen: &mut Seen) -> Option<Key> {
    if !field.sendable(text) {
        return None;
    }
    let id = fingerprint(text);
    field.show(&id);
    let key = Key {
        project: ProjectId::new(id.as_str()),
        id,
        secret: Secret::new(text.to_owned()),
        weight: 1,
        auth_mode: inherited.auth_mode,
        proxy_url: inherited.proxy_url.clone(),
    };
    seen.key(&key, Named::default(), field);
    Some(key)
}

fn key(entry: &Field<'_>, inherited: &Inherited, seen: &mut Seen) -> Option<Key> {
    let mut s = entry.entry()?;
    let secret = s.secret_text("key");
    let id_field = s.field("id");
    let project_field = s.field("project");
    let weight = s.field("weight");
    let auth_mode = s.field("auth_mode");
    let own_proxy = proxy_url(&mut s);
    s.finish();
    let Some((secret_field, secret)) = secret else {
        if !entry.has_mistake() {
            entry.problem("`key` is missing; add it, or `key_file`");
        }
        return None;
    };
    if !secret_field.sendable(&secret) {
        return None;
    }
    let id = key_id(&id_field).map_or_else(|| fingerprint(&secret), KeyId::new);
    id_field.show(quoted(id.as_str()));
    secret_field.show(HIDDEN);
    let project = label(&project_field).map(ProjectId::new);
    if let Some(project) = &project {
        project_field.show(quoted(project.as_str()));
    }
    let key = Key {
        project: project.clone().unwrap_or_else(|| ProjectId::new(id.as_str())),
        id,
        secret: Secret::new(secret),
        weight: weight.number(&(1..=MAX_WEIGHT)).unwrap_or(1),
        auth_mode: auth_mode.choice(&AUTH_MODES).unwrap_or(inherited.auth_mode),
        proxy_url: own_proxy.or_else(|| inherited.proxy_url.clone()),
    };
    weight.show(key.weight);
    if auth_mode.is_set() {
        auth_mode
            .show(AUTH_MODES.iter().find(|(_, mode)| *mode == key.auth_mode).map_or("", |(word, _)| word));
    }
    for name in [&id_field, &project_field] {
        if name.text().is_some_and(|text| text == key.secret.expose()) {
            name.problem("this is the key itself, but it is shown in logs and answers; choose a name");
        }
    }
    let named = Named {
        id: Some(&id_field).filter(|f| f.is_set()),
        project: Some(&project_field).filter(|_| project.is_some()),
    };
    seen.key(&key, named, &secret_field);
    Some(key)
}

/// An id goes into a header, so it is visible ASCII.
fn key_id(field: &Field<'_>) -> Option<String> {
    let text = field.name()?;
    if text.len() > 64 || !text.chars().all(|c| c.is_ascii_graphic()) {
        return field.expected("an id of at most 64 visible ASCII characters, without spaces");
    }
    Some(text)
}

impl Seen {
    fn key(&mut self, key: &Key, named: Named<'_, '_>, field: &Field<'_>) {
        let print = fingerprint(key.secret.expose());
        let project = named.project.map(|_| key.project.clone());
        if let Some((first, other)) = self.keys.get(&key.secret) {
            let first = field.origin.refer_to(first);
            if project.is_some() && other.is_some() && project != *other {
                field.problem(format_args!("{print} is in two projects (in the other at {first}); keep one"));
            } else {
                field.problem(format_args!("{print} is listed twice (first at {first}); remove one"));
            }
            return;
        }
        self.keys.insert(key.secret.clone(), (field.origin.clone(), project));
        let at = named.id.unwrap_or(field);
        if let Some(first) = self.ids.insert(key.id.clone(), at.origin.clone()) {
            let first = at.origin.refer_to(&first);
            at.problem(format_args!("another key has this id (at {first}); choose another"));
        }
        match named.project {
            Some(at) => _ = self.named.entry(key.project.clone()).or_insert_with(|| at.origin.clone()),
            None => self.alone.push((key.project.clone(), field.path.clone(), field.origin.clone())),
        }
    }

    /// What can be said only when every key is known.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let shared = self.alone.iter().filter_map(|(project, path, origin)| {
            let named = origin.refer_to(self.named.get(project)?);
            let what = format!("without `project` its project has the name of its id, which is taken (at {named}); add `project`");
            Some(Problem::new(origin, path, what))
        });
        shared.collect()
    }
}

/// `projects`, with every project that a key is in.
pub(super) fn projects(list: &Field<'_>, groups: &[Group]) -> BTreeMap<ProjectId, Project> {
    let mut origins = HashMap::new();
    let mut projects = BTreeMap::new();
    for entry in list.elements() {
        let Some(mut s) = entry.entry() else { continue };
        let id = s.field("id");
        let billing = s.field("billing_account");
        let limits = limits(&s.field("limits"));
        s.finish();
        let billing_account = label(&billing);
        if !id.is_set() {
            entry.problem("`id` is missing; add it");
        }
        let Some(name) = label(&id) else { continue };
        id.show(quoted(&name));
        if let Some(account) = &billing_account {
            billing.show(quoted(account));
        }
        if let Some(first) = origins.insert(name.clone(), id.origin.clone()) {
            let first = id.origin.refer_to(&first);
            id.problem(format_args!("another project has this id (at {first}); remove one"));
        }
        projects.insert(ProjectId::new(name), Project { billing_account, limits, groups: Vec::new() });
    }
    for (index, group) in groups.iter().enumerate() {
        for key in &group.keys {
            let in_groups = &mut projects.entry(key.project.clone()).or_default().groups;
            if in_groups.last() != Some(&index) {
                in_groups.push(index);
            }
        }
    }
    projects
}

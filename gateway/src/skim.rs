//! One pass over a JSON body for what routing needs: the top-level `model` and `stream`, and references to stored
//! resources; and over an answer for what it says of itself. It builds no tree and checks no syntax (the upstream does);
//! bodies of hundreds of kilobytes are mostly long strings, which are crossed at the speed of `memchr`.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::LazyLock;

use keyfleet_core::id::Resource;
use memchr::memchr;
use memchr::memmem::Finder;

/// The longest string that may be a model or a reference.
const MAX_NAME: usize = 512;
/// The most references that are looked at.
const MAX_REFERENCES: usize = 64;
/// Prefixes of resources that belong to one project.
const RESOURCES: [&str; 7] = [
    "files/",
    "cachedContents/",
    "batches/",
    "interactions/",
    "tunedModels/",
    "operations/",
    "fileSearchStores/",
];

/// The roles of prompts that many conversations share.
static SYSTEM: LazyLock<[Finder<'static>; 2]> =
    LazyLock::new(|| ["\"system\"", "\"developer\""].map(Finder::new));

/// What was found. Positions are byte ranges of the body, so that hardly anything is copied and a rewrite touches nothing
/// else.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Skim {
    /// The value of the top-level `model`, between its quotes.
    pub(crate) model: Option<Range<usize>>,
    /// The value of the top-level `stream`.
    pub(crate) stream: bool,
    /// The top-level `store` is false.
    pub(crate) not_stored: bool,
    /// There is a top-level `top_p`.
    pub(crate) top_p: bool,
    /// Behind the opening brace.
    pub(crate) after_brace: Option<usize>,
    /// Strings that name a resource, from its kind on: `files/abc-123`.
    pub(crate) references: Vec<Resource>,
    /// What a conversation begins with: the first entry of `messages`, `contents` or `input`, and the second one
    /// too if the first is a system prompt, which many conversations share.
    pub(crate) opening: Option<Range<usize>>,
    /// The value of the top-level `previous_interaction_id`.
    pub(crate) previous_interaction: Option<Range<usize>>,
    /// The value of the top-level `id`.
    pub(crate) id: Option<Range<usize>>,
    /// The values of the top-level `modelVersion` and `responseId`, which native answers have.
    pub(crate) model_version: Option<Range<usize>>,
    pub(crate) response_id: Option<Range<usize>>,
}

/// Reads a body. What is no JSON object yields what was found until it stopped making sense. An event is crossed like
/// a literal up to its first quote, so what it is about counts as the top: an interaction's first event says what was
/// made.
pub(crate) fn skim(body: &[u8]) -> Skim {
    let mut found = Skim::default();
    let mut at = 0;
    let mut depth = 0_u32;
    // At depth 1, the key whose value comes next.
    let mut key: Cow<'_, [u8]> = Cow::Borrowed(b"");
    let mut expect_key = false;
    let mut opening_from = None;
    while let Some(step) = body.get(at..).and_then(|rest| rest.iter().position(|b| !b.is_ascii_whitespace()))
    {
        at += step;
        match body[at] {
            b'"' => {
                let Some(end) = string_end(body, at + 1) else { return found };
                let text = at + 1..end;
                if depth == 1 && expect_key {
                    key = unescaped(&body[text]);
                    expect_key = false;
                } else {
                    if depth == 1 && text.len() <= MAX_NAME {
                        found.text(&key, text.clone());
                    }
                    found.reference(&body[text]);
                }
                at = end + 1;
            }
            open @ (b'{' | b'[') => {
                depth += 1;
                expect_key = depth == 1 && open == b'{';
                if expect_key {
                    found.after_brace = Some(at + 1);
                } else if depth == 2 && open == b'[' && matches!(&*key, b"messages" | b"contents" | b"input")
                {
                    opening_from = Some(at + 1);
                }
                at += 1;
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                if depth == 2
                    && let Some(from) = opening_from
                {
                    let entry = from..at + 1;
                    opening_from =
                        opening_from.filter(|_| found.opening.is_none() && is_system(&body[entry.clone()]));
                    found.opening = Some(entry);
                }
                at += 1;
                if depth == 0 {
                    return found;
                }
            }
            b',' => {
                expect_key = depth == 1;
                at += 1;
            }
            b':' => at += 1,
            _ => {
                let literal = &body[at..at + literal_len(&body[at..])];
                if depth == 1 {
                    found.literal(&key, literal);
                }
                at += literal.len().max(1);
            }
        }
    }
    found
}

impl Skim {
    fn text(&mut self, key: &[u8], text: Range<usize>) {
        let place = match key {
            b"model" => &mut self.model,
            b"previous_interaction_id" => &mut self.previous_interaction,
            b"id" => &mut self.id,
            b"modelVersion" => &mut self.model_version,
            b"responseId" => &mut self.response_id,
            _ => return,
        };
        *place = Some(text);
    }

    fn literal(&mut self, key: &[u8], literal: &[u8]) {
        self.stream |= key == b"stream" && literal.starts_with(b"true");
        self.not_stored |= key == b"store" && literal.starts_with(b"false");
        self.top_p |= key == b"top_p";
    }

    fn reference(&mut self, text: &[u8]) {
        // How a resource, a URL of one, or an escape begins: few strings do.
        let may_name = text.first().is_some_and(|first| b"\\hfcbito".contains(first));
        if !may_name || text.len() > MAX_NAME || self.references.len() >= MAX_REFERENCES {
            return;
        }
        let text = unescaped(text);
        if let Some(name) = reference(&text)
            && let Ok(name) = std::str::from_utf8(&text[name])
        {
            self.references.push(Resource::new(name));
        }
    }
}

/// What a string of JSON says. Some encoders escape every slash.
pub(crate) fn unescaped(text: &[u8]) -> Cow<'_, [u8]> {
    if text.len() > MAX_NAME || memchr(b'\\', text).is_none() {
        return Cow::Borrowed(text);
    }
    match serde_json::from_slice::<String>(&[b"\"", text, b"\""].concat()) {
        Ok(plain) => Cow::Owned(plain.into_bytes()),
        Err(_) => Cow::Borrowed(text),
    }
}

/// Whether a path is about a collection of resources, such as `v1beta/files`, or about a video, which ends as a file.
pub(crate) fn names_a_collection(path: &str) -> bool {
    path.split(['/', ':'])
        .any(|part| part == "videos" || RESOURCES.iter().any(|kind| kind.trim_end_matches('/') == part))
}

/// Where a string names a resource: at its start, or behind the last `/v1beta/` and its like of a URL.
pub(crate) fn reference(text: &[u8]) -> Option<Range<usize>> {
    let version = if text.starts_with(b"http") { memchr::memmem::rfind(text, b"/v1") } else { None };
    let from = match version {
        Some(version) => version + 1 + memchr(b'/', &text[version + 1..])? + 1,
        None => 0,
    };
    let name = &text[from..];
    let kind = RESOURCES.iter().find(|kind| name.starts_with(kind.as_bytes()))?;
    let is_part_of_id = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let id = name[kind.len()..].iter().position(|b| !is_part_of_id(b)).unwrap_or(name.len() - kind.len());
    (id > 0).then_some(from..from + kind.len() + id)
}

/// The length of a number, `true`, `false` or `null`.
fn literal_len(rest: &[u8]) -> usize {
    rest.iter().position(|b| matches!(b, b',' | b'}' | b']' | b'"')).unwrap_or(rest.len())
}

/// Whether a message is a system prompt, by the role that stands at its start or end.
fn is_system(entry: &[u8]) -> bool {
    let ends = [&entry[..entry.len().min(40)], &entry[entry.len().saturating_sub(40)..]];
    ends.iter().any(|end| SYSTEM.iter().any(|role| role.find(end).is_some()))
}

/// The closing quote of a string that begins at `from`: the first quote behind an even number of backslashes.
fn string_end(body: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        let quote = at + memchr(b'"', body.get(at..)?)?;
        let backslashes = body[from..quote].iter().rev().take_while(|b| **b == b'\\').count();
        if backslashes.is_multiple_of(2) {
            return Some(quote);
        }
        at = quote + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(body: &str) -> Option<&str> {
        skim(body.as_bytes()).model.map(|range| &body[range])
    }

    fn references(body: &str) -> Vec<String> {
        skim(body.as_bytes()).references.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_top_level_model_wherever_it_stands() {
        assert_eq!(model(r#"{"model":"m","x":1}"#), Some("m"));
        assert_eq!(
            model(r#"{"messages":[{"model":"no","content":"{\"model\":\"no\"}"}],"model":"m"}"#),
            Some("m")
        );
        assert_eq!(model(r#"{"a":"\\","model" : "m"}"#), Some("m"));
        assert_eq!(model(r#"{"a":"\"model\":","b":["model","x"],"model":"m"}"#), Some("m"));
        assert_eq!(model(r#"{"a":{"model":"no"}}"#), None);
        assert_eq!(model(r#"["model","no"]"#), None);
        assert_eq!(model(r#"{"model":1,"b":"c"}"#), None);
        for broken in ["", "{", "{\"model", "{\"model\":\"m", "}}", "nonsense", "{\"a\":\"\\\"}"] {
            assert_eq!(model(broken), None, "{broken}");
        }
    }

    #[test]
    fn stream_is_the_literal_true_at_the_top() {
        assert!(skim(br#"{"a":[1,2,{"stream":false}], "stream" : true }"#).stream);
        assert!(!skim(br#"{"stream":false,"a":true}"#).stream);
        assert!(!skim(br#"{"a":{"stream":true},"stream":"true"}"#).stream);
    }

    #[test]
    fn what_is_not_to_be_stored_says_so_at_the_top() {
        assert!(skim(br#"{"input":"x","store" : false}"#).not_stored);
        for body in [r#"{"store":true}"#, r#"{"a":{"store":false}}"#, r#"{"store":"false"}"#, "{}"] {
            assert!(!skim(body.as_bytes()).not_stored, "{body}");
        }
    }

    #[test]
    fn references_in_every_place_that_clients_use() {
        assert_eq!(
            references(
                r#"{"contents":[{"parts":[{"fileData":{"fileUri":"https://generativelanguage.googleapis.com/v1beta/files/abc-1"}},
                {"text":"see files/none and cachedContents/none"}]}],"cachedContent":"cachedContents/c_2",
                "extra_body":{"google":{"cached_content":"cachedContents/c3"}},"input":"files/"}"#
            ),
            ["files/abc-1", "cachedContents/c_2", "cachedContents/c3"]
        );
        assert_eq!(
            references(
                r#"{"a":"https:\/\/host\/v1beta\/files\/abc-1","b":"cached\u0043ontents\/c_2","c":"\/\x"}"#
            ),
            ["files/abc-1", "cachedContents/c_2"],
            "escaped"
        );
    }

    #[test]
    fn every_kind_of_resource_is_looked_for() {
        for kind in RESOURCES {
            assert_eq!(references(&format!(r#"{{"a":"{kind}x"}}"#)), [format!("{kind}x")]);
        }
    }

    #[test]
    fn a_key_is_what_it_says_however_it_is_spelled() {
        assert_eq!(model(r#"{"mod\u0065l":"m"}"#), Some("m"));
        assert!(skim(br#"{"str\u0065am":true}"#).stream);
    }

    #[test]
    fn a_conversation_opens_with_its_first_message() {
        let system = r#"{"role":"system","content":"a]b"},{"role":"user","content":"x"}"#;
        let user = r#"{"role":"user","parts":[{"text":"}"}]}"#;
        let opening = |body: &str| skim(body.as_bytes()).opening.map(|range| body[range].to_owned());
        let body = format!(r#"{{"model":"m","messages":[{system},{{"role":"assistant"}}]}}"#);
        assert_eq!(opening(&body).as_deref(), Some(system));
        for more in ["", r#",{"role":"model","parts":[]}"#] {
            assert_eq!(opening(&format!(r#"{{"contents":[{user}{more}]}}"#)).as_deref(), Some(user));
        }
    }

    #[test]
    fn an_event_tells_what_was_made() {
        let id = |body: &str| skim(body.as_bytes()).id.map(|range| body[range].to_owned());
        for name in ["", "event: interaction.created\n"] {
            let event = |json: &str| format!("{name}data: {json}\n\ndata: {{\"id\":\"no\"}}\n\n");
            let created = r#"{"event_type":"interaction.created","interaction":{"id":"v1_a","status":"x"}}"#;
            assert_eq!(id(&event(created)).as_deref(), Some("v1_a"));
            let first = r#"{"interaction":{"status":"x","id":"v1_b"},"id":"no"}"#;
            assert_eq!(id(&event(first)).as_deref(), Some("v1_b"));
            assert_eq!(id(&event(r#"{"event_type":"interaction.status_update"}"#)), None);
        }
        assert_eq!(id("data: [DONE]\n\n"), None);
    }

    #[test]
    fn a_hostile_run_of_escapes_is_crossed_once() {
        let body = format!(r#"{{"a":"{}","model":"m"}}"#, r#"\""#.repeat(200_000));
        assert_eq!(model(&body), Some("m"));
    }
}

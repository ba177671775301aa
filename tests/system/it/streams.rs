//! Answers on their way through: untouched while they are good, and never taken for good when they are not.

mod broken;
mod inside;
mod silent;

use std::io::Read as _;
use std::time::Duration;

use flate2::read::GzDecoder;
use keyfleet_simulator::{Action, Match, Received, Rule, World};
use keyfleet_tests::{Answer, Client, Gateway, Sim, read};
use serde_json::{Value, json};

const MODEL: &str = "gemini-2.5-flash";
const SOON: Duration = Duration::from_secs(15);

/// The ways in which a model answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    ChatPlain,
    ChatEvents,
    NativePlain,
    NativeEvents,
    NativeArray,
}

impl Form {
    const ALL: [Self; 5] =
        [Self::ChatPlain, Self::ChatEvents, Self::NativePlain, Self::NativeEvents, Self::NativeArray];
    const EVENTS: [Self; 2] = [Self::ChatEvents, Self::NativeEvents];

    fn is_chat(self) -> bool {
        matches!(self, Self::ChatPlain | Self::ChatEvents)
    }

    fn path(self) -> String {
        match self {
            Self::ChatPlain | Self::ChatEvents => "/v1beta/openai/chat/completions".into(),
            Self::NativePlain => format!("/v1beta/models/{MODEL}:generateContent"),
            Self::NativeEvents => format!("/v1beta/models/{MODEL}:streamGenerateContent?alt=sse"),
            Self::NativeArray => format!("/v1beta/models/{MODEL}:streamGenerateContent"),
        }
    }

    /// The request, to a gateway or to the simulator itself.
    fn request(self, client: &Client, secret: &str) -> reqwest::RequestBuilder {
        let request = client.request(reqwest::Method::POST, &self.path());
        let (request, body) = if self.is_chat() {
            let messages = [json!({"role": "user", "content": "Say something."})];
            let body = json!({"model": MODEL, "stream": self == Self::ChatEvents, "messages": messages});
            (request.bearer_auth(secret), body)
        } else {
            let body = json!({"contents": [{"role": "user", "parts": [{"text": "Say something."}]}]});
            (request.header("x-goog-api-key", secret), body)
        };
        request.header("content-type", "application/json").body(body.to_string())
    }

    async fn ask(self, gateway: &Gateway) -> Answer {
        read(self.request(&gateway.client(), "placeholder")).await.expect("an answer")
    }

    /// The same request without a gateway between.
    async fn ask_directly(self, sim: &Sim) -> Answer {
        let request = self.request(&Client::new(sim.url()), &sim.secrets()[0]);
        read(request).await.expect("an answer")
    }
}

/// An answer without what differs between two answers to the same question: ids and the time.
fn alike(text: &str) -> String {
    let mut alike = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((at, name)) = ["\"id\":", "\"responseId\":", "\"created\":"]
        .into_iter()
        .filter_map(|name| Some((rest.find(name)?, name)))
        .min()
    {
        let value = at + name.len();
        alike.push_str(&rest[..value]);
        let end = rest[value..].find([',', '}', '\n']).unwrap_or(rest.len() - value);
        alike.extend(rest[value..value + end].chars().map(|c| if c.is_alphanumeric() { 'x' } else { c }));
        rest = &rest[value + end..];
    }
    alike + rest
}

/// The JSON of every event; panics on anything that a client could not read.
fn events(text: &str) -> Vec<Value> {
    let plain = text.replace("\r\n", "\n");
    let body = plain.strip_suffix("\n\n").unwrap_or_else(|| unreadable("the last event has no end", text));
    let events = body.split("\n\n").filter(|event| !event.starts_with(':') && *event != "data: [DONE]");
    events
        .map(|event| {
            let data =
                event.strip_prefix("data: ").unwrap_or_else(|| unreadable("an event without data", text));
            serde_json::from_str(data).unwrap_or_else(|_| unreadable("an event that is no JSON", text))
        })
        .collect()
}

#[expect(clippy::panic, reason = "it ends the scenario with what it knows")]
fn unreadable(what: &str, text: &str) -> ! {
    panic!("{what}: {text}")
}

/// What goes wrong for requests of clients; the prober's are others.
fn fault(action: Action) -> Rule {
    Rule { when: Match { method: Some("POST".into()), ..Match::default() }, ..Rule::new(action) }
}

/// A compressed answer, read by its client.
async fn gunzipped(request: reqwest::RequestBuilder) -> String {
    let response = request.send().await.expect("an answer");
    let body = response.bytes().await.expect("a whole answer");
    let mut text = String::new();
    GzDecoder::new(&body[..]).read_to_string(&mut text).expect("a whole answer, compressed");
    text
}

/// The requests of clients.
fn calls(sim: &Sim) -> Vec<Received> {
    let mut log = sim.log();
    log.retain(|request| request.method == "POST");
    log
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_upstream_says_arrives_as_it_is() {
    let sim = Sim::start(World::pool(3, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let shapes = [
        None,
        Some(Action::BytePerChunk),
        Some(Action::NoUsage),
        Some(Action::DuplicateDone),
        Some(Action::Gzip),
    ];
    for shape in shapes {
        sim.rules(shape.iter().cloned().map(fault).collect());
        for form in Form::ALL {
            let direct = form.ask_directly(&sim).await;
            let relayed = form.ask(&gateway).await;
            assert!(direct.whole && relayed.whole, "{form:?} {shape:?}");
            assert_eq!((direct.status, relayed.status), (200, 200), "{form:?} {shape:?}: {}", relayed.text);
            for name in ["content-type", "content-encoding", "server-timing"] {
                assert_eq!(relayed.header(name), direct.header(name), "{form:?} {shape:?}: {name}");
            }
            assert_eq!(relayed.header("alt-svc"), "", "another way to the upstream is not the client's");
            if shape == Some(Action::Gzip) {
                let direct = gunzipped(form.request(&Client::new(sim.url()), &sim.secrets()[0])).await;
                let relayed = gunzipped(form.request(&gateway.client(), "placeholder")).await;
                assert_eq!(alike(&relayed), alike(&direct), "{form:?}");
            } else {
                assert_eq!(alike(&relayed.text), alike(&direct.text), "{form:?} {shape:?}");
            }
        }
    }
}

/// An answer of any shape, to the byte: what a client may depend on is not the gateway's to judge.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oddities_are_kept_to_the_byte() {
    let sim = Sim::start(World::pool(2, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let answer = |body: &str, content_type: &str| {
        let body = body.to_owned();
        let action = Action::Status {
            status: 200,
            body,
            headers: Vec::new(),
            content_type: Some(content_type.into()),
        };
        vec![fault(action)]
    };
    for (form, content_type, body) in [
        (
            Form::ChatPlain,
            "application/json",
            "{ \"choices\" : [ {\"message\":{\"role\":\"assistant\"}} ],\n \"n\": 12345678901234567890, \"x\": 1.10 }\n",
        ),
        (
            Form::NativePlain,
            "application/json; charset=UTF-8",
            "{\"promptFeedback\":{\"blockReason\":\"OTHER\"},\"new\":{\"a\":null}}",
        ),
        (
            Form::ChatEvents,
            "text/event-stream",
            ": hello\n\nevent: odd\nid: 7\ndata: {\"choices\":[{\"delta\":{\"content\":\"\\\"error\\\": {}\"}}]}\n\ndata:{\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n: bye",
        ),
        (
            Form::NativeEvents,
            "text/event-stream",
            "data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"{\\\"error\\\":1}\\u00e9 é\"}]}}]}\r\n\r\ndata: {\"candidates\": [{\"finishReason\": \"SAFETY\"}]}\r\n\r\n",
        ),
        (
            Form::NativeArray,
            "application/json",
            "[{\n  \"candidates\": [{\"finishReason\": \"STOP\"}]\n}\n,\r\n{\"candidates\":[]}]\n",
        ),
    ] {
        sim.rules(answer(body, content_type));
        let relayed = form.ask(&gateway).await;
        assert_eq!((relayed.status, relayed.whole), (200, true), "{form:?}: {}", relayed.text);
        assert_eq!(relayed.text, body, "{form:?}");
        assert_eq!(relayed.header("content-type"), content_type, "{form:?}");
    }
}

/// A chunk goes out when it comes in, not when the next one does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_does_not_wait_for_the_next_one() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    for form in [Form::ChatEvents, Form::NativeEvents, Form::NativeArray] {
        sim.rules(vec![fault(Action::StallMidStream { after_chunks: 2, ms: None })]);
        let mut response = form.request(&gateway.client(), "placeholder").send().await.expect("an answer");
        let mut text = Vec::new();
        let candidates = if form.is_chat() { "\"delta\"" } else { "\"candidates\"" };
        let both = async {
            while String::from_utf8_lossy(&text).matches(candidates).count() < 2 {
                text.extend(response.chunk().await.expect("no end").expect("a chunk"));
            }
        };
        tokio::time::timeout(SOON, both).await.expect("two chunks arrive though the third never does");
    }
}

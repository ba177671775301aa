//! Bar 5: no secret leaves by any door. Every gateway of every other scenario is searched too, when it ends.

use keyfleet_simulator::{Action, Family, ProjectState, Rule, World};
use keyfleet_tests::{Gateway, GatewayOptions, Sim};
use serde_json::{Value, json};

const MODEL: &str = "gemini-2.5-flash";
const CLIENT_TOKEN: &str = "client-token-6f1d2c9a";
const ADMIN_TOKEN: &str = "admin-token-93be4417";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_door_lets_a_secret_out() {
    let mut world = World::pool(8, 1);
    // Its 403 quotes the whole key, three times.
    world.projects[0].state = ProjectState::Suspended;
    let sim = Sim::start(world).await;
    let mut config = sim.config();
    config["server"]["clients"] = json!([{"name": "tests", "token": CLIENT_TOKEN}]);
    config["server"]["admin_token"] = json!(ADMIN_TOKEN);
    config["server"]["state_file"] = json!("keyfleet-state.json");
    let options = GatewayOptions { log: "trace".into(), ..GatewayOptions::new(config) };
    let gateway = Gateway::start_with(options).await;

    let mut found = String::new();
    for rule in echoes(&sim.secrets()) {
        sim.rules(rule.into_iter().collect());
        for (path, body) in requests() {
            found += &exchange(&gateway, &path, &body).await;
        }
    }
    sim.rules(Vec::new());
    for path in ["/metrics", "/health/detailed", "/health/ready", "/v1/models", "/v1beta/models", "/nothing"]
    {
        found += &exchange(&gateway, path, &Value::Null).await;
    }
    for subcommand in ["print-config", "check-config"] {
        found += &gateway.subcommand(subcommand);
    }
    let mut secrets = sim.secrets();
    secrets.extend([CLIENT_TOKEN.to_owned(), ADMIN_TOKEN.to_owned()]);
    for secret in secrets {
        assert!(!found.contains(&secret), "{secret} in an answer:\n{}", around(&found, &secret));
    }
}

/// Upstream answers that carry secrets, in every family that reaches a client.
fn echoes(secrets: &[String]) -> Vec<Option<Rule>> {
    let all = secrets.join(" and ");
    let body = |status: u16, name: &str| {
        json!({"error": {"code": status, "message": format!("You sent {all}."), "status": name}}).to_string()
    };
    let status = |status: u16, body: String| Action::Status {
        status,
        body,
        headers: vec![("x-echo".into(), all.clone())],
        content_type: None,
    };
    let mut rules = vec![None];
    rules.extend(
        [
            status(400, body(400, "INVALID_ARGUMENT")),
            status(400, format!("[{}]", body(400, "INVALID_ARGUMENT"))),
            status(400, body(400, &secrets[1])),
            status(400, json!({"error": {"code": secrets[1], "message": "x"}}).to_string()),
            status(404, body(404, "NOT_FOUND")),
            status(404, format!("<html>{all}</html>")),
            status(500, body(500, "INTERNAL")),
            status(403, body(403, "PERMISSION_DENIED")),
            status(429, body(429, "RESOURCE_EXHAUSTED")),
            Action::Family(Family::Suspended),
            Action::Family(Family::Leaked),
            Action::ErrorEvent { after_chunks: 1, family: Family::Suspended, wrapped: false },
            Action::ErrorEvent { after_chunks: 0, family: Family::Suspended, wrapped: true },
            Action::RawTail { after_chunks: 1, family: Family::Suspended },
        ]
        .map(|action| Some(Rule::new(action).times(3))),
    );
    rules
}

fn requests() -> Vec<(String, Value)> {
    let chat = |stream: bool| json!({"model": MODEL, "stream": stream, "messages": [{"role": "user", "content": "Hi"}]});
    let contents = json!({"contents": [{"role": "user", "parts": [{"text": "Hi"}]}]});
    vec![
        ("/v1/chat/completions".into(), chat(false)),
        ("/v1/chat/completions".into(), chat(true)),
        (format!("/v1beta/models/{MODEL}:generateContent"), contents.clone()),
        (
            format!("/v1beta/models/{MODEL}:streamGenerateContent?alt=sse&key={CLIENT_TOKEN}"),
            contents.clone(),
        ),
        (format!("/v1beta/models/{MODEL}:countTokens"), contents),
        ("/upload/v1beta/files".into(), json!({"file": {"display_name": "x"}})),
    ]
}

/// Status, headers and body of one exchange, as the client sees them.
async fn exchange(gateway: &Gateway, path: &str, body: &Value) -> String {
    let client = gateway.client();
    let method = if body.is_null() { reqwest::Method::GET } else { reqwest::Method::POST };
    let mut request = client.request(method, path);
    if !path.contains("key=") {
        request = request.bearer_auth(CLIENT_TOKEN);
    }
    if path.starts_with("/upload") {
        request =
            request.header("x-goog-upload-protocol", "resumable").header("x-goog-upload-command", "start");
    }
    if !body.is_null() {
        request = request.header("content-type", "application/json").body(body.to_string());
    }
    let answer = keyfleet_tests::read(request).await.expect("an answer");
    // Not the query: there the client itself sent its token.
    let path = path.split('?').next().unwrap_or_default();
    format!("{path} {} {:?}\n{}\n", answer.status, answer.headers, answer.text)
}

fn around<'a>(text: &'a str, secret: &str) -> &'a str {
    let at = text.find(secret).unwrap_or_default();
    let start = text[..at].char_indices().rev().nth(600).map_or(0, |(at, _)| at);
    let end = text[at..].char_indices().nth(300).map_or(text.len(), |(after, _)| at + after);
    &text[start..end]
}

//! What the README shows, works: its configuration, its clients, its request, its table of options.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use keyfleet_simulator::{Received, World};
use keyfleet_tests::{Gateway, Sdk, Sim, gemini_cli};
use serde_json::{Value, json};

const ADDRESS: &str = "http://127.0.0.1:4806";
const TOKEN: &str = "choose-a-long-token";

fn readme() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    fs::read_to_string(path).expect("the README")
}

/// The code blocks of a language, in order.
fn blocks(language: &str) -> Vec<String> {
    let text = readme();
    let start = format!("```{language}\n");
    let blocks = text.split(start.as_str()).skip(1);
    blocks.filter_map(|rest| Some(rest.split_once("```")?.0.to_owned())).collect()
}

async fn gateway() -> (Sim, Gateway) {
    let sim = Sim::start(World::pool(3, 1)).await;
    let mut config = sim.config();
    config["server"]["clients"] = json!([{"name": "my-team", "token": TOKEN}]);
    let gateway = Gateway::start(config).await;
    (sim, gateway)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_in_it_gets_an_answer() {
    let (_sim, gateway) = gateway().await;
    let python = blocks("python");
    let js = blocks("js");
    let programs = [
        (Sdk::OpenAiPython, &python[0]),
        (Sdk::GenAiPython, &python[1]),
        (Sdk::OpenAiJs, &js[0]),
        (Sdk::GenAiJs, &js[1]),
    ];
    for (sdk, program) in programs {
        assert!(program.contains(ADDRESS), "{program}");
        let printed = sdk.run(&program.replace(ADDRESS, &gateway.url())).await;
        assert!(printed.trim().len() > 10, "{sdk:?} printed {printed:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gemini_cli_gets_an_answer() {
    let (sim, gateway) = gateway().await;
    let shell = blocks("sh");
    let command =
        shell.iter().find(|block| block.starts_with("GOOGLE_GEMINI_BASE_URL")).expect("its command");
    let mut settings: Value = serde_json::from_str(&blocks("json")[0]).expect("its settings");
    // Tests tell nobody that they ran.
    settings["privacy"] = json!({"usageStatisticsEnabled": false});
    let printed = gemini_cli(command.replace(ADDRESS, &gateway.url()).trim(), &settings).await;
    assert!(printed.trim().len() > 10, "it printed {printed:?}");
    let streamed = |request: &Received| request.path_and_query.contains(":streamGenerateContent?alt=sse");
    assert!(sim.log().iter().any(|request| streamed(request) && request.status == 200));
}

/// Agents stream, want the usage, bring tools, and come back with what these said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coding_agents_get_tool_calls_and_their_usage() {
    let (sim, gateway) = gateway().await;
    let ask = async |model: &str, messages: &Value| {
        let tool = json!({"name": "read_file", "description": "Reads a file", "parameters": {
            "type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}});
        let body = json!({
            "model": model, "temperature": 0, "messages": messages, "stream": true,
            "stream_options": {"include_usage": true}, "tools": [{"type": "function", "function": tool}],
            "tool_choice": "auto", "max_tokens": 8_192,
        });
        let request = gateway.client().request(reqwest::Method::POST, "/v1/chat/completions");
        let request = request.bearer_auth(TOKEN).header("content-type", "application/json");
        keyfleet_tests::read(request.body(body.to_string())).await.expect("an answer")
    };
    let first = json!([
        {"role": "system", "content": "You are an agent."},
        {"role": "user", "content": [{"type": "text", "text": "What does it say?"}]},
    ]);
    for model in ["gemini-2.5-flash", "gemini-3.8-flash"] {
        let answer = ask(model, &first).await;
        let events = answer.text.split("\n\n").filter_map(|event| event.strip_prefix("data: {"));
        let events: Vec<Value> =
            events.map(|event| serde_json::from_str(&format!("{{{event}")).expect("JSON")).collect();
        let call = events[0]["choices"][0]["delta"]["tool_calls"][0].clone();
        assert_eq!(call["function"]["name"], "read_file", "{}", answer.text);
        assert!(events.last().is_some_and(|last| last["usage"]["total_tokens"].is_u64()), "{}", answer.text);
        // They give back what the OpenAI API knows of a call, and nothing else.
        let known = json!({"id": call["id"], "type": "function", "function": call["function"]});
        let mut messages = first.as_array().cloned().expect("messages");
        messages.push(json!({"role": "assistant", "tool_calls": [known]}));
        messages.push(json!({"role": "tool", "tool_call_id": call["id"], "content": "A text."}));
        sim.forget();
        let next = ask(model, &json!(messages)).await;
        if model.contains("-3.") {
            let error = next.json()["error"]["message"].to_string();
            assert!(next.status == 400 && error.contains("missing a thought_signature"), "{}", next.text);
        } else {
            assert!(next.status == 200 && next.text.contains("\"content\""), "{}", next.text);
        }
        assert_eq!(next.header("x-keyfleet-attempts"), "1");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_first_request_is_answered() {
    let (_sim, gateway) = gateway().await;
    let text = readme();
    let (_, rest) = text.split_once("curl -N http://127.0.0.1:4806").expect("the first request");
    let (path, rest) = rest.split_once(' ').expect("a path");
    let (_, rest) = rest.split_once("-d '").expect("a body");
    let body: Value = serde_json::from_str(rest.split_once('\'').expect("its end").0).expect("JSON");
    let request = gateway.client().request(reqwest::Method::POST, path).bearer_auth(TOKEN);
    let answer = keyfleet_tests::read(request.body(body.to_string())).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert!(answer.text.ends_with("data: [DONE]\n\n"), "{}", answer.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_configuration_is_good_and_its_options_are_all() {
    let (_sim, gateway) = gateway().await;
    let yaml = blocks("yaml");
    let mut printed = String::new();
    for example in &yaml {
        fs::write(gateway.folder().join("config.yaml"), example).expect("the file");
        let said = gateway.subcommand("check-config");
        assert!(said.contains("the configuration is good"), "{said}\n{example}");
        printed += &gateway.subcommand("print-config");
    }

    // Every option of the program is in the table, and nothing else.
    let text = readme();
    let (_, table) = text.split_once("## Options").expect("the options");
    let (table, later) = table.split_once("These are accepted").expect("the end of the table");
    let later = later.split("\n\n").next().unwrap_or_default();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let documented: BTreeSet<&str> =
        rows.map(|(name, _)| name.rsplit(['.', ']']).next().unwrap_or(name)).collect();
    let names = printed.lines().filter_map(|line| line.split_once(':'));
    let names = names.map(|(name, _)| name.trim_start_matches([' ', '-']));
    let names = names.filter(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
    let sections = [
        "server",
        "groups",
        "circuit_breaker",
        "monitoring",
        "alert_thresholds",
        "alerts",
        "rate_limit",
        "projects",
        "quota",
        "redis",
        "nats",
        "coordinator",
        "telemetry",
        "receivers",
    ];
    let of_keys = ["id", "key", "project", "name", "token", "billing_account"];
    for name in names.filter(|name| !sections.contains(name) && !of_keys.contains(name)) {
        assert!(documented.contains(name), "the README has no option {name}");
    }
    for name in documented {
        let known = printed.contains(&format!("{name}:")) || schema().contains(name);
        assert!(known && !later.contains(&format!("`{name}`")), "the program has no option {name}");
    }
}

fn schema() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/service/src/config");
    let files = ["schema.rs", "schema/alerts.rs"];
    files.map(|file| fs::read_to_string(folder.join(file)).expect("the schema")).concat()
}

//! What the operator asks to be changed, and not one byte else.

use keyfleet_simulator::World;
use keyfleet_tests::{Gateway, Sim};
use reqwest::Method;
use serde_json::json;

use super::calls;

async fn recording() -> Sim {
    let mut world = World::pool(1, 1);
    world.log_bodies = true;
    Sim::start(world).await
}

/// Sends a body and says what came of path and body.
async fn sent(gateway: &Gateway, sim: &Sim, path: &str, body: &str) -> (String, String) {
    sim.forget();
    let request = gateway.client().request(Method::POST, path).bearer_auth("placeholder");
    let answer = keyfleet_tests::read(request.body(body.to_owned())).await.expect("an answer");
    assert_eq!(answer.status, 200, "{path} {body}: {}", answer.text);
    let log = calls(sim);
    (log[0].path_and_query.clone(), log[0].body.clone().unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alias_is_put_in_the_place_of_the_name() {
    let sim = recording().await;
    let mut config = sim.config();
    config["groups"][0]["model_aliases"] =
        json!({"gpt-4o": "gemini-2.5-flash", "text-embedding-3-small": "gemini-embedding-001"});
    let gateway = Gateway::start(config).await;
    let chat = "/v1/chat/completions";
    for (name, upstream) in [
        ("gpt-4o", "gemini-2.5-flash"),
        ("models/gpt-4o", "models/gemini-2.5-flash"),
        ("gemini-2.5-pro", "gemini-2.5-pro"),
    ] {
        let body = |model: &str| {
            format!(
                r#"{{ "seed": 9223372036854775807, "model" :  "{model}","messages":[{{"role":"user","content":"gpt-4o"}}] }}"#
            )
        };
        let (_, arrived) = sent(&gateway, &sim, chat, &body(name)).await;
        assert_eq!(arrived, body(upstream));
    }
    let embed = |model: &str| format!(r#"{{"model":"{model}","input":"gpt-4o"}}"#);
    let (_, arrived) = sent(&gateway, &sim, "/v1/embeddings", &embed("text-embedding-3-small")).await;
    assert_eq!(arrived, embed("gemini-embedding-001"));
    let contents = r#"{"contents":[{"parts":[{"text":"gpt-4o"}],"role":"user"}]}"#;
    let (path, arrived) =
        sent(&gateway, &sim, "/v1beta/models/gpt-4o:streamGenerateContent?alt=sse", contents).await;
    assert_eq!(path, "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse");
    assert_eq!(arrived, contents);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_default_for_top_p_is_added_where_there_is_none() {
    let sim = recording().await;
    let mut config = sim.config();
    config["server"]["top_p"] = json!(0.25);
    config["groups"][0]["model_aliases"] = json!({"gpt-4o": "gemini-2.5-flash"});
    let gateway = Gateway::start(config).await;
    let chat = "/v1/chat/completions";
    let messages = r#""messages":[{"role":"user","content":"the \"top_p\": 1"}]"#;
    for (body, wanted) in [
        (
            format!(r#"{{ "model":"gemini-2.5-flash",{messages}}}"#),
            format!(r#"{{"top_p":0.25, "model":"gemini-2.5-flash",{messages}}}"#),
        ),
        (
            format!(r#"{{"model":"gpt-4o",{messages}}}"#),
            format!(r#"{{"top_p":0.25,"model":"gemini-2.5-flash",{messages}}}"#),
        ),
        (
            format!(r#"{{"model":"gemini-2.5-flash",{messages},"top_p":0.9}}"#),
            format!(r#"{{"model":"gemini-2.5-flash",{messages},"top_p":0.9}}"#),
        ),
        (
            format!(r#"{{"model":"gemini-2.5-flash","top_p":null,{messages}}}"#),
            format!(r#"{{"model":"gemini-2.5-flash","top_p":null,{messages}}}"#),
        ),
    ] {
        assert_eq!(sent(&gateway, &sim, chat, &body).await.1, wanted);
    }
    let embed = r#"{"model":"gemini-embedding-001","input":"a"}"#;
    assert_eq!(sent(&gateway, &sim, "/v1/embeddings", embed).await.1, embed);
    let contents = r#"{"contents":[{"parts":[{"text":"a"}],"role":"user"}]}"#;
    let native = "/v1beta/models/gemini-2.5-flash:generateContent";
    assert_eq!(sent(&gateway, &sim, native, contents).await.1, contents);
}

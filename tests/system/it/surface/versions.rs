//! HTTP as new, old and odd clients speak it.

use keyfleet_simulator::World;
use keyfleet_tests::{Gateway, Sim};
use serde_json::{Value, json};

use super::{Wire, calls, chat};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_http_2_is_served() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let client = reqwest::Client::builder().http2_prior_knowledge().no_proxy().build().expect("a client");
    for stream in [false, true] {
        let mut body = chat();
        body["stream"] = json!(stream);
        let request =
            client.post(format!("{}/v1/chat/completions", gateway.url())).bearer_auth("placeholder");
        let response = request.body(body.to_string()).send().await.expect("an answer");
        assert_eq!((response.version(), response.status().as_u16()), (reqwest::Version::HTTP_2, 200));
        let text = response.text().await.expect("a whole answer");
        assert_eq!(text.ends_with("data: [DONE]\n\n"), stream, "{text}");
        if !stream {
            let answer: Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(answer["object"], "chat.completion");
        }
    }
}

/// What a reverse proxy speaks unless it is told otherwise: the end of the connection is the end of the answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_http_1_0_is_served() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    for stream in [false, true] {
        let mut body = chat();
        body["stream"] = json!(stream);
        let (body, mut wire) = (body.to_string(), Wire::open(&gateway).await);
        let head = "POST /v1/chat/completions HTTP/1.0\r\nHost: gateway\r\nContent-Type: application/json";
        wire.write(&format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
        let answer = wire.until("\u{0}").await;
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.0 200"), "{answer}");
        assert!(!head.to_ascii_lowercase().contains("chunked"), "{head}");
        let whole = if stream {
            body.ends_with("data: [DONE]\n\n")
        } else {
            serde_json::from_str::<Value>(body).is_ok()
        };
        assert!(whole, "{body}");
    }
}

/// A client that takes the gateway for its forward proxy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_url_as_the_target_is_understood() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let mut wire = Wire::open(&gateway).await;
    let url = "http://generativelanguage.googleapis.com/v1beta/models?pageSize=2";
    wire.write(&format!("GET {url} HTTP/1.1\r\nHost: generativelanguage.googleapis.com\r\n\r\n")).await;
    let answer = wire.until("\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let request = calls(&sim).remove(0);
    assert_eq!(request.path_and_query, "/v1beta/models?pageSize=2");
    assert_eq!(
        request.header("host"),
        sim.url().strip_prefix("http://"),
        "the request went where the client said"
    );
}

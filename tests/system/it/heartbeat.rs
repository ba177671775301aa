//! The sign of life that somebody else waits for.

use std::time::Duration;

use keyfleet_simulator::World;
use keyfleet_tests::{Gateway, GatewayOptions, Sim, eventually};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const WITHIN: Duration = Duration::from_secs(20);

/// What one request asks for, which gets this answer.
async fn asked(listener: &TcpListener, answer: &str) -> String {
    let (mut wire, _) =
        tokio::time::timeout(WITHIN, listener.accept()).await.expect("a request").expect("it");
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        head.push(char::from(wire.read_u8().await.expect("a head")));
    }
    wire.write_all(format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").as_bytes())
        .await
        .expect("it is written");
    head
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_leads_gives_a_sign_of_life_at_once_and_one_that_fails_is_told_without_its_address() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    let mut config = sim.config();
    config["alerts"] = json!({"heartbeat_url": format!("http://{address}/ping/secret-of-the-ping")});
    let gateway =
        Gateway::start_with(GatewayOptions { log: "trace".into(), ..GatewayOptions::new(config) }).await;
    let head = asked(&listener, "503 Busy").await;
    assert!(head.starts_with("GET /ping/secret-of-the-ping HTTP/1.1\r\n"), "{head}");
    let why = format!("http://{address} answered 503");
    eventually("the failure in the log", WITHIN, || async { gateway.logs().contains(&why).then_some(()) })
        .await;
    assert!(!gateway.logs().contains("secret-of-the-ping"), "{}", gateway.logs());
}

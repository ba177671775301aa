//! How long a gateway waits for a client that says nothing, or hardly anything.

use std::time::{Duration, Instant};

use keyfleet_simulator::World;
use keyfleet_tests::{Gateway, Sim};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Thirty seconds, and what a busy machine adds to them.
const HEAD_WITHIN: Duration = Duration::from_secs(55);

async fn connect(gateway: &Gateway) -> TcpStream {
    TcpStream::connect(gateway.url().trim_start_matches("http://")).await.expect("a connection")
}

/// A request on a connection that is kept.
async fn health(wire: &mut TcpStream) -> String {
    wire.write_all(b"GET /health HTTP/1.1\r\nHost: gateway\r\n\r\n").await.expect("it is written");
    let mut answer = String::new();
    while !answer.ends_with("ok\n") {
        answer.push(char::from(wire.read_u8().await.expect("the connection is still open")));
    }
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_has_to_come_within_its_time_and_a_kept_connection_may_be_silent_for_longer() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let mut kept = connect(&gateway).await;
    health(&mut kept).await;
    let began = Instant::now();
    let (mut from, mut to) = connect(&gateway).await.into_split();
    let dribble = async {
        let mut sent = to.write_all(b"GET /health HTTP/1.1\r\nx-slow: ").await;
        while sent.is_ok() {
            tokio::time::sleep(Duration::from_millis(500)).await;
            sent = to.write_all(b"x").await;
        }
    };
    let mut answer = Vec::new();
    let ended = async { from.read_to_end(&mut answer).await };
    let both = tokio::time::timeout(HEAD_WITHIN, async { tokio::join!(dribble, ended) });
    drop(both.await.expect("the slow head is cut"));
    assert!(answer.is_empty() && began.elapsed() > Duration::from_secs(29), "after {:?}", began.elapsed());
    assert!(health(&mut kept).await.starts_with("HTTP/1.1 200"));
}

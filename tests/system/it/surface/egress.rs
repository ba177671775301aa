//! The way out through a proxy: a tunnel or SOCKS, with credentials.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use keyfleet_simulator::World;
use keyfleet_tests::{Gateway, Sim};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufStream, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::https::trusting_with;
use super::{MODEL, calls};

const USER: &str = "someone";
const PASSWORD: &str = "p@ss:word";
/// How both stand in a URL.
const QUOTED: &str = "someone:p%40ss%3Aword";

/// A proxy that lets one user through, and notes where to.
struct Proxy {
    at: SocketAddr,
    passed: Arc<Mutex<Vec<String>>>,
    /// Ends with it.
    _serving: JoinSet<()>,
}

#[derive(Clone, Copy)]
enum Kind {
    Http,
    Socks,
}

impl Proxy {
    async fn start(kind: Kind) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = listener.local_addr().expect("an address");
        let passed = Arc::new(Mutex::new(Vec::new()));
        let notes = passed.clone();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                // An error: one of the two has gone.
                open.spawn(pass(kind, BufStream::new(client), notes.clone()));
            }
        });
        Self { at, passed, _serving: serving }
    }

    fn passed(&self) -> Vec<String> {
        let mut passed = self.passed.lock().expect("the notes").clone();
        passed.dedup();
        passed
    }
}

async fn pass(
    kind: Kind,
    mut client: BufStream<TcpStream>,
    notes: Arc<Mutex<Vec<String>>>,
) -> io::Result<()> {
    let asked = match kind {
        Kind::Http => greet_http(&mut client).await?,
        Kind::Socks => greet_socks(&mut client).await?,
    };
    let Some(to) = asked else { return client.flush().await };
    client.flush().await?;
    notes.lock().expect("the notes").push(to.clone());
    copy_bidirectional(&mut client, &mut TcpStream::connect(&to).await?).await.map(drop)
}

async fn greet_http(client: &mut BufStream<TcpStream>) -> io::Result<Option<String>> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") && client.read_line(&mut head).await? > 0 {}
    let known =
        format!("proxy-authorization: Basic {}", BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}")));
    let is_known = head.lines().any(|line| line.eq_ignore_ascii_case(&known));
    let to = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).filter(|_| is_known);
    let answer =
        if to.is_some() { "HTTP/1.1 200 Go on" } else { "HTTP/1.1 407 Proxy Authentication Required" };
    client.write_all(format!("{answer}\r\n\r\n").as_bytes()).await?;
    Ok(to.map(str::to_owned))
}

/// RFC 1928 and RFC 1929.
async fn greet_socks(client: &mut BufStream<TcpStream>) -> io::Result<Option<String>> {
    client.read_u8().await?;
    counted(client).await?;
    client.write_all(&[5, 2]).await?;
    client.flush().await?;
    client.read_u8().await?;
    let is_known = (counted(client).await?.as_str(), counted(client).await?.as_str()) == (USER, PASSWORD);
    client.write_all(&[1, u8::from(!is_known)]).await?;
    client.flush().await?;
    if !is_known {
        return Ok(None);
    }
    let mut request = [0; 4];
    client.read_exact(&mut request).await?;
    let host = match request[3] {
        1 => Ipv4Addr::from(client.read_u32().await?).to_string(),
        _ => counted(client).await?,
    };
    let to = format!("{host}:{}", client.read_u16().await?);
    client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
    Ok(Some(to))
}

/// Bytes behind their number.
async fn counted(client: &mut BufStream<TcpStream>) -> io::Result<String> {
    let mut bytes = vec![0; client.read_u8().await?.into()];
    client.read_exact(&mut bytes).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Where this upstream is, for a proxy.
fn target(sim: &Sim, host: &str) -> String {
    let port = sim.url().rsplit(':').next().expect("a port").to_owned();
    format!("{host}:{port}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn https_goes_through_a_tunnel() {
    let sim = Sim::start(World { tls: true, ..World::pool(2, 1) }).await;
    let proxy = Proxy::start(Kind::Http).await;
    let mut config = sim.config();
    config["groups"][0]["proxy_url"] = json!(format!("http://{QUOTED}@{}", proxy.at));
    let (gateway, _folder) = trusting_with(&sim, config).await;
    for stream in [false, true] {
        let answer = gateway.client().chat(MODEL, stream).await.expect("an answer");
        assert_eq!((answer.status, answer.whole), (200, true), "{}", answer.text);
    }
    assert!(calls(&sim).iter().all(|request| request.http2), "HTTP/1.1 was used");
    assert_eq!(proxy.passed(), [target(&sim, "127.0.0.1")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn socks_is_told_a_name_or_an_address() {
    let sim = Sim::start(World::pool(2, 1)).await;
    let url = sim.config()["groups"][0]["target_url"].as_str().expect("a target").to_owned();
    for (scheme, host) in [("socks5h", "localhost"), ("socks5", "127.0.0.1")] {
        let proxy = Proxy::start(Kind::Socks).await;
        let mut config = sim.config();
        config["groups"][0]["target_url"] = json!(url.replace("127.0.0.1", "localhost"));
        config["groups"][0]["proxy_url"] = json!(format!("{scheme}://{QUOTED}@{}", proxy.at));
        let gateway = Gateway::start(config).await;
        let answer = gateway.client().chat(MODEL, true).await.expect("an answer");
        assert_eq!((answer.status, answer.whole), (200, true), "{}", answer.text);
        let passed = proxy.passed();
        let loopback = scheme == "socks5" && passed.iter().all(|to| to.starts_with("[::1]"));
        assert!(loopback || passed == [target(&sim, host)], "{passed:?}");
    }
}

/// Nothing goes another way, and nobody is told the password.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_refuses_is_the_fault_of_the_way_out() {
    let sim = Sim::start(World::pool(2, 1)).await;
    for (kind, scheme) in [(Kind::Http, "http"), (Kind::Socks, "socks5h")] {
        let proxy = Proxy::start(kind).await;
        let mut config = sim.config();
        config["groups"][0]["proxy_url"] = json!(format!("{scheme}://someone:else-wrong@{}", proxy.at));
        let gateway = Gateway::start(config).await;
        let answer = gateway.client().chat(MODEL, false).await.expect("an answer");
        assert!([502, 503].contains(&answer.status), "{} {}", answer.status, answer.text);
        assert!(answer.text.contains("cannot be reached"), "{}", answer.text);
        gateway.says("the upstream cannot be reached").await;
        assert!(proxy.passed().is_empty());
        assert!(!gateway.logs().contains("else-wrong"), "{}", gateway.logs());
    }
    assert!(sim.log().is_empty(), "something went another way");
}

//! The deployment of compose.yaml, each container as a process at an address of its own, in the order in which
//! docker-compose would start them; the balancer is the real one, with the file that is mounted into it.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use keyfleet_tests::{Client, Figures, eventually};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::inside::Container;
use super::names::Names;
use super::{rendered, services};

const MODEL: &str = "gemini-2.5-flash";
const UP_WITHIN: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_secs(20);

/// Where the balancer asks for gateways.
const DOCKER_DNS: &str = "127.0.0.11:53";

struct Deployment {
    // In this order they end: a process before what it needs.
    containers: BTreeMap<String, Vec<Container>>,
    file: Value,
    names: Names,
    places: Vec<(String, String)>,
    /// The first two parts of the addresses, which nobody else uses.
    net: [u8; 2],
    last: u8,
    folder: TempDir,
}

impl Deployment {
    /// `docker compose --profile demo up`, with secrets of its own.
    async fn start() -> Self {
        let folder = TempDir::new().expect("a folder");
        let secrets = folder.path().join("secrets");
        fs::create_dir(&secrets).expect("a folder");
        for (at, name) in [
            "gemini_api_keys",
            "client_token",
            "admin_token",
            "nats_password",
            "redis_password",
            "grafana_password",
        ]
        .iter()
        .enumerate()
        {
            // What a server could take for a number.
            fs::write(secrets.join(name), format!("{at}12345\n")).expect("a secret");
        }
        let file = rendered(&["demo", "smoke"], &[("KEYFLEET_SECRETS", secrets.to_str().expect("a path"))]);
        let names = Names::of("gateway").await;
        let net = [fastrand::u8(1..255), fastrand::u8(1..255)];
        let places = vec![(DOCKER_DNS.to_owned(), names.socket().to_string())];
        let mut deployment = Self { containers: BTreeMap::new(), file, names, places, net, last: 0, folder };
        // Others know each other by name. So does the balancer, which asks for the gateways' addresses.
        let stays = |(_, service): &(&str, &Value)| service["restart"] != "no";
        let mut waiting: Vec<String> =
            services(&deployment.file).filter(stays).map(|(name, _)| name.to_owned()).collect();
        while !waiting.is_empty() {
            let able = |name: &&String| {
                deployment.needs(name).all(|other| deployment.containers.contains_key(other))
            };
            let next = waiting.iter().find(able).expect("nobody waits for himself").clone();
            waiting.retain(|name| *name != next);
            for _ in 0..deployment.file["services"][&next]["deploy"]["replicas"].as_u64().unwrap_or(1) {
                deployment.add(&next);
            }
            deployment.healthy(&next).await;
        }
        deployment
    }

    fn needs(&self, name: &str) -> impl Iterator<Item = &str> {
        let needed = self.file["services"][name]["depends_on"].as_object().into_iter().flatten();
        needed.map(|(other, _)| other.as_str()).filter(|other| self.file["services"][other].is_object())
    }

    /// One more container of a service.
    fn add(&mut self, name: &str) {
        self.last += 1;
        let [a, b] = self.net;
        let address = Ipv4Addr::new(127, a, b, self.last);
        let mut service = self.file["services"][name].clone();
        for secret in service["secrets"].as_array_mut().into_iter().flatten() {
            let source = secret["source"].as_str().expect("a source").to_owned();
            secret["file"] = self.file["secrets"][source]["file"].clone();
        }
        let folder = self.folder.path().join(format!("{name}-{}", self.last));
        let container = Container::start(name, &service, address, folder, &self.places);
        if name == "gateway" {
            self.names.add(address);
        } else {
            self.places.push((format!("//{name}:"), format!("//{address}:")));
        }
        self.containers.entry(name.to_owned()).or_default().push(container);
    }

    /// Waits until the health checks of a service's containers succeed.
    async fn healthy(&mut self, name: &str) {
        for container in self.containers.get_mut(name).into_iter().flatten() {
            let what = format!("{name} is healthy");
            let end = tokio::time::Instant::now() + UP_WITHIN;
            while !container.is_healthy().await {
                assert!(
                    tokio::time::Instant::now() < end,
                    "not within {UP_WITHIN:?}: {what}\n{}",
                    container.log()
                );
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    fn all(&self, name: &str) -> &[Container] {
        self.containers.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// As a user of this machine reaches it.
    fn client(&self) -> Client {
        let port = &self.file["services"]["balancer"]["ports"][0]["target"];
        Client::new(format!("http://{}:{port}", self.all("balancer")[0].address))
    }

    /// How many requests a gateway has answered.
    async fn answered(&self, at: usize) -> f64 {
        let gateway = &self.all("gateway")[at];
        let port = self.file["services"]["gateway"]["environment"]["KEYFLEET__SERVER__OPS_PORT"].as_str();
        let ops = Client::new(format!("http://{}:{}", gateway.address, port.expect("a port")));
        let metrics = ops.get("/metrics").await.expect("metrics");
        Figures::parse(&metrics.text).sum("keyfleet_requests_total").unwrap_or_default()
    }

    /// `docker compose run --rm smoke`: whether it ends well, and what it says.
    async fn smoke(&mut self) -> (bool, String) {
        // Docker's name server would give any.
        let gateway = self.all("gateway")[0].address;
        self.places.push(("//gateway:".to_owned(), format!("//{gateway}:")));
        self.add("smoke");
        let mut smoke = self.containers.remove("smoke").expect("it was started").remove(0);
        (smoke.end().await.success(), smoke.log())
    }

    /// Asks until every one of these gateways has answered something.
    async fn reaches(&self, gateways: &[usize]) {
        let before: Vec<f64> =
            futures_util::future::join_all(gateways.iter().map(|at| self.answered(*at))).await;
        eventually("every gateway has answered", SOON, || async {
            assert_eq!(ask(&self.client()).await, 200);
            let now = futures_util::future::join_all(gateways.iter().map(|at| self.answered(*at))).await;
            now.iter().zip(&before).all(|(now, before)| now > before).then_some(())
        })
        .await;
    }
}

/// One cheap request: no quota is spent for it.
async fn ask(client: &Client) -> u16 {
    client.get("/v1/models").await.expect("an answer").status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_serves_clients_and_survives_the_loss_of_a_gateway() {
    let mut deployment = Deployment::start().await;
    let client = deployment.client();
    let answer = client.chat(MODEL, false).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert!(answer.text.contains("comes from the Gemini simulator"), "{}", answer.text);
    let answer = client.chat(MODEL, true).await.expect("an answer");
    assert!(
        answer.status == 200 && answer.whole && answer.text.ends_with("data: [DONE]\n\n"),
        "{}",
        answer.text
    );
    deployment.reaches(&[0, 1, 2]).await;
    let (fine, said) = deployment.smoke().await;
    assert!(fine && said.ends_with(" checks passed, 0 failed\n"), "{said}");
    assert!(!client.get("/metrics").await.expect("an answer").text.contains("keyfleet_"), "operators only");

    // Operators ask inside a container, as the README says.
    let (fine, said) =
        deployment.all("coordinator")[0].exec(&["/usr/local/bin/coordinator", "status", "--json"]).await;
    let status: Value = serde_json::from_str(&said).unwrap_or_default();
    assert!(fine && status["leader"].is_string(), "{said}");

    let lost = &mut deployment.containers.get_mut("gateway").expect("gateways")[0];
    lost.signal(Signal::KILL);
    lost.end().await;
    for n in 0..20 {
        assert_eq!(ask(&client).await, 200, "request {n} after the loss");
    }
    let answer = client.chat(MODEL, true).await.expect("an answer");
    assert!(answer.status == 200 && answer.whole, "{}", answer.text);

    // `docker compose up --scale gateway=4`
    deployment.add("gateway");
    deployment.reaches(&[1, 2, 3]).await;
    let containers = deployment.containers.iter_mut().filter(|(name, _)| *name != "gateway");
    containers.flat_map(|(_, containers)| containers).for_each(Container::assert_alive);
}

/// `docker compose up` that replaces a gateway: what is under way there goes on, and nothing new is sent there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_is_stopped_loses_no_stream() {
    let mut deployment = Deployment::start().await;
    let client = deployment.client();
    let body = json!({
        "model": MODEL, "stream": true, "messages": [{"role": "user", "content": "Say something."}],
    });
    let request = || {
        let request = client.request(reqwest::Method::POST, "/v1/chat/completions");
        request.header("content-type", "application/json").body(body.to_string()).send()
    };
    // One on each gateway, all begun and none at its end.
    let mut streams = futures_util::future::join_all([request(), request(), request()]).await;
    let mut texts = Vec::new();
    for stream in &mut streams {
        let stream = stream.as_mut().expect("an answer");
        let first = stream.chunk().await.expect("a chunk").expect("a chunk");
        let first = String::from_utf8_lossy(&first).into_owned();
        assert!(stream.status() == 200 && !first.contains("[DONE]"), "it was held back: {first}");
        texts.push(first);
    }
    for gateway in &deployment.all("gateway")[..2] {
        gateway.signal(Signal::TERM);
    }
    for (stream, text) in streams.into_iter().zip(&mut texts) {
        let mut stream = stream.expect("an answer");
        while let Some(chunk) = stream.chunk().await.expect("the stream goes on") {
            *text += &String::from_utf8_lossy(&chunk);
        }
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        assert_eq!(ask(&client).await, 200);
    }
    let gateways = deployment.containers.get_mut("gateway").expect("gateways");
    for gateway in &mut gateways[..2] {
        let status = gateway.end().await;
        assert!(status.success(), "{status}\n{}", gateway.log());
    }
    for n in 0..20 {
        assert_eq!(ask(&client).await, 200, "request {n} without the two");
    }
}

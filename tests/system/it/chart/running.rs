//! The examples, running: the rendered `ConfigMap`, Secrets, environment and arguments start the real programs, with real
//! NATS and Redis, and serve a client.

use std::time::Duration;

use keyfleet_simulator::World;
use keyfleet_tests::helm::{object, objects, render};
use keyfleet_tests::{Client, Figures, Node, Sim, eventually, free_port, read};
use serde_json::json;

const MODEL: &str = "gemini-2.5-flash";
const SOON: Duration = Duration::from_secs(30);
const GATEWAY: (&str, &str) = ("Deployment", "gateway");
const COORDINATOR: (&str, &str) = ("Deployment", "coordinator");

/// The servers of an example, and a node with its objects, on ports of their own.
struct Release {
    node: Node,
    /// Keeps NATS and Redis that are not of the release.
    _servers: Option<Node>,
    sim: Sim,
}

/// Every Secret that an example expects, with what is put into it here.
const SECRETS: [(&str, &str, &str); 9] = [
    ("keyfleet-tokens", "web", "a-token-of-the-web"),
    ("keyfleet-tokens", "batch", "a-token-of-batches"),
    ("keyfleet-tokens", "team", "a-token-of-the-team"),
    ("keyfleet-tokens", "admin-token", "a-token-of-operators"),
    ("keyfleet-alerts", "slack-url", "http://127.0.0.1:9/a-secret-path"),
    ("keyfleet-nats", "password", "a-password-of-nats"),
    ("keyfleet-redis", "password", "a-password-of-redis"),
    ("keyfleet", "team-token", "a-token-of-the-team"),
    ("keyfleet", "admin-token", "a-token-of-operators"),
];

impl Release {
    async fn start(example: &str, world: World) -> Self {
        let sim = Sim::start(world).await;
        let target = format!("{}/v1beta/openai/", sim.url());
        let [nats, redis] = [free_port(), free_port()];
        let of_nats = format!("127.0.0.1:{nats}");
        let of_redis = format!("127.0.0.1:{redis}");
        let mut set = format!(
            "config.server.host=127.0.0.1,config.server.port={},config.server.ops_port={},config.coordinator.port={}",
            free_port(),
            free_port(),
            free_port()
        );
        if example == "production" {
            set = format!(
                "{set},nats.external.url=nats://{of_nats},redis.external.url=redis://{of_redis}/0,\
                 config.groups[0].target_url={target}"
            );
        }
        let mut node = Node::new(objects(&render(example, &["--set", &set])));
        for (name, key, value) in SECRETS {
            node.secret(name, key, value);
        }
        let keys = sim.secrets().join("\n");
        node.secret("keyfleet-keys", "api-keys", &keys);
        node.secret("keyfleet", "api-keys", &keys);
        node.secret("keyfleet", "nats-url", &format!("nats://keyfleet:a-password-of-nats@{of_nats}"));
        node.secret("keyfleet", "redis-url", &format!("redis://:a-password-of-redis@{of_redis}/0"));
        node.resolve("keyfleet-nats:4222", &of_nats);
        node.resolve("keyfleet-redis:6379", &of_redis);
        node.resolve("http://keyfleet-simulator:4809", &sim.url());
        // Keys without more are keys of Google, which is not asked here.
        node.resolve("name: default\n", &format!("name: default\n  target_url: {target}\n"));
        let mut servers = None;
        match example {
            "one-replica" => {}
            "evaluation" | "openshift" => start_servers(&mut node, nats, redis, [&[], &[]]),
            _ => {
                let mut elsewhere = Node::new(objects(&render("evaluation", &[])));
                let login = [
                    &["--user", "keyfleet", "--pass", "a-password-of-nats"][..],
                    &["--requirepass", "a-password-of-redis"],
                ];
                start_servers(&mut elsewhere, nats, redis, login);
                servers = Some(elsewhere);
            }
        }
        if example != "one-replica" {
            node.start(COORDINATOR.0, COORDINATOR.1, &[]);
        }
        node.start(GATEWAY.0, GATEWAY.1, &[]);
        node.ready(GATEWAY.0, GATEWAY.1).await;
        if example != "one-replica" {
            node.ready(COORDINATOR.0, COORDINATOR.1).await;
        }
        Self { node, _servers: servers, sim }
    }

    fn client(&self) -> Client {
        self.node.client(GATEWAY.0, GATEWAY.1, "http")
    }

    /// What the programs themselves say of their configuration.
    fn assert_good(&self, program: (&str, &str)) {
        let (good, said) = self.node.exec(program.0, program.1, &["check-config"]);
        assert!(good && said == "the configuration is good\n", "{}: {said}", program.1);
    }

    /// Whatever comes by a Secret is in no log.
    fn assert_secrets_kept(&self, programs: &[(&str, &str)]) {
        for (_, name) in programs {
            let log = self.node.log(name);
            let secrets = self.sim.secrets();
            let mut secrets =
                secrets.iter().map(String::as_str).chain(SECRETS.iter().map(|(_, _, value)| *value));
            assert_eq!(secrets.find(|secret| log.contains(secret)), None, "{name}");
        }
    }
}

/// NATS and Redis with the arguments of the chart.
fn start_servers(node: &mut Node, nats: u16, redis: u16, login: [&[&str]; 2]) {
    node.resolve("--http_port=8222", &format!("--http_port={}", free_port()));
    let nats = nats.to_string();
    node.start("StatefulSet", "nats", &[&["--addr", "127.0.0.1", "--port", &nats], login[0]].concat());
    let redis = redis.to_string();
    node.start("StatefulSet", "redis", &[&["--bind", "127.0.0.1", "--port", &redis], login[1]].concat());
}

/// The status of a streamed answer.
async fn ask(client: &Client, token: &str) -> u16 {
    let body = json!({"model": MODEL, "stream": true, "messages": [{"role": "user", "content": "Hi"}]});
    let request = client.request(reqwest::Method::POST, "/v1/chat/completions").bearer_auth(token);
    let answer = read(request.body(body.to_string())).await.expect("an answer");
    assert!(answer.status != 200 || answer.text.ends_with("data: [DONE]\n\n"), "{}", answer.text);
    answer.status
}

async fn is_a_cluster(release: &Release) {
    let ops = release.node.client(GATEWAY.0, GATEWAY.1, "ops");
    eventually("NATS and Redis are reached, and a leader is heard", SOON, || async {
        let figures = Figures::parse(&ops.get("/metrics").await.ok()?.text);
        let up = ["keyfleet_bus_up", "keyfleet_store_up"].iter().all(|name| figures.sum(name) == Some(1.0));
        (up && figures.sum("keyfleet_state_age_seconds")? >= 0.0).then_some(())
    })
    .await;
    // What the notes tell operators to ask.
    let (good, said) = release.node.exec(COORDINATOR.0, COORDINATOR.1, &["keys"]);
    assert!(good, "{said}");
    release.assert_good(COORDINATOR);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evaluation_answers_without_anything() {
    let release = Release::start("evaluation", World::demo()).await;
    assert_eq!(ask(&release.client(), "anything").await, 200);
    is_a_cluster(&release).await;
    release.assert_good(GATEWAY);
    release.assert_secrets_kept(&[GATEWAY, COORDINATOR]);
    // The ports of clients and operators are two.
    assert_ne!(release.client().get("/metrics").await.expect("an answer").status, 200);
    // The simulator's container takes its arguments, and its keys are those of the chart.
    let args = ["--demo", "--listen", "0.0.0.0:4809", "--latency", "realistic"];
    let objects = objects(&render("evaluation", &[]));
    let container = &object(&objects, "Deployment", "simulator")["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["args"], json!(args));
    let (good, said) =
        release.node.exec("Deployment", "simulator", &[&args[..], &["--print-config"]].concat());
    assert!(good, "{said}");
    let keys = object(&objects, "Secret", "simulator")["stringData"].as_object().expect("keys");
    for (id, key) in keys {
        assert!(said.contains(&format!("{{id: \"{id}\", key: {key}, ")), "{said}");
    }
    assert_eq!(keys.len(), said.matches("key: ").count());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn production_serves_named_clients_and_follows_its_secrets() {
    let mut release = Release::start("production", World::pool(3, 1)).await;
    is_a_cluster(&release).await;
    release.assert_good(GATEWAY);
    let client = release.client();
    assert_eq!(ask(&client, "a-token-of-the-web").await, 200);
    assert_eq!(ask(&client, "a-token-of-batches").await, 200);
    assert_eq!(ask(&client, "a-token-of-nobody").await, 401);
    release.assert_secrets_kept(&[GATEWAY, COORDINATOR]);

    release.node.secret("keyfleet-tokens", "web", "a-new-token-of-the-web");
    release.node.refresh(GATEWAY.0, GATEWAY.1);
    eventually("the new token is in force without a restart", SOON, || async {
        (ask(&client, "a-new-token-of-the-web").await == 200).then_some(())
    })
    .await;
    assert_eq!(ask(&client, "a-token-of-the-web").await, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gitops_takes_urls_from_its_secret() {
    let release = Release::start("gitops", World::pool(3, 1)).await;
    is_a_cluster(&release).await;
    release.assert_good(GATEWAY);
    assert_eq!(ask(&release.client(), "a-token-of-the-team").await, 200);
    assert_eq!(ask(&release.client(), "").await, 401);
    release.assert_secrets_kept(&[GATEWAY, COORDINATOR]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openshift_answers() {
    let release = Release::start("openshift", World::pool(3, 1)).await;
    is_a_cluster(&release).await;
    release.assert_good(GATEWAY);
    assert_eq!(ask(&release.client(), "a-token-of-the-team").await, 200);
    release.assert_secrets_kept(&[GATEWAY, COORDINATOR]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_replica_needs_nothing_else() {
    let release = Release::start("one-replica", World::pool(3, 1)).await;
    release.assert_good(GATEWAY);
    assert_eq!(ask(&release.client(), "a-token-of-the-team").await, 200);
    release.assert_secrets_kept(&[GATEWAY]);
    let state = release.node.folder("gateway").join("var/lib/keyfleet/keyfleet-state.json");
    eventually("the state is on the volume", SOON, || async { state.exists().then_some(()) }).await;
}

//! An upload goes on at any gateway, without credentials: its id is the capability, and the store knows whose it is.

use keyfleet_simulator::World;
use keyfleet_tests::{Answer, Client, Cluster, ClusterOptions, Part, read};
use reqwest::Method;
use serde_json::json;

const TOKEN: &str = "client-token-of-uploads";
const CONTENT: &str = "What the file says.";

/// The first step. What leads to the second, at any gateway.
async fn begin(client: &Client) -> String {
    let request = client
        .request(Method::POST, "/upload/v1beta/files")
        .header("x-goog-api-key", TOKEN)
        .header("x-goog-upload-protocol", "resumable")
        .header("x-goog-upload-command", "start")
        .header("x-goog-upload-header-content-length", CONTENT.len())
        .header("x-goog-upload-header-content-type", "text/plain")
        .body("{}");
    let begun = read(request).await.expect("an answer");
    assert_eq!(begun.status, 200, "{}", begun.text);
    let url = begun.header("x-goog-upload-url");
    url.get(url[8..].find('/').expect("a path") + 8..).expect("a path").to_owned()
}

/// The second step, as Google's clients send it.
async fn finish(client: &Client, path: &str) -> Answer {
    let request = client.request(Method::POST, path).header("x-goog-upload-command", "upload, finalize");
    read(request.header("x-goog-upload-offset", 0).body(CONTENT)).await.expect("an answer")
}

/// What one gateway begins, another one that is told of nothing looks up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_on_at_a_gateway_that_has_not_heard_of_them() {
    let clients = json!([{"name": "tests", "token": TOKEN}]);
    let config = json!({"server": {"state_file": "", "clients": clients}});
    let options = ClusterOptions::new(config).gateways(2).linked();
    let cluster = Cluster::start(World::pool(6, 1), options).await;
    let [nats, _] = cluster.links(Part::Gateway(1));
    nats.cut();
    let other = cluster.gateway(1);
    for _ in 0..3 {
        let path = begin(&cluster.gateway(0)).await;
        let done = finish(&other, &path).await;
        assert_eq!((done.status, done.header("x-keyfleet-attempts")), (200, "1"), "{}", done.text);
        assert!(done.json()["file"]["name"].is_string(), "{}", done.text);
    }
    nats.heal();

    cluster.sim().forget();
    begin(&cluster.gateway(0)).await;
    let made_up = "/upload/v1beta/files?upload_id=guessed&upload_protocol=resumable";
    for gateway in [0, 1, 0, 1] {
        let refused = finish(&cluster.gateway(gateway), made_up).await;
        assert_eq!(refused.status, 401, "{}", refused.text);
    }
    let mut uploads = cluster.sim().log();
    uploads.retain(|request| request.path_and_query.starts_with("/upload/"));
    assert_eq!(uploads.len(), 1, "what nobody began is not passed on");
}

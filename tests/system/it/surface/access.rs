//! Who may call, and how often.

use keyfleet_simulator::{Credential, World};
use keyfleet_tests::{Gateway, Program, Sim, eventually};
use reqwest::Method;
use serde_json::{Value, json};

use super::{MODEL, SOON, calls, chat, contents, send};

const TOKEN: &str = "client-token-a1+/=";
const ENCODED: &str = "client-token-a1%2B%2F%3D";
const OTHER: &str = "client-token-b2";

fn bearer(token: &str) -> (&'static str, String) {
    ("authorization", format!("Bearer {token}"))
}

async fn with_clients(sim: &Sim, limit: Option<Value>) -> Gateway {
    let mut config = sim.config();
    config["server"]["clients"] = json!([{"name": "a", "token": TOKEN}, {"name": "b", "token": OTHER}]);
    if let Some(limit) = limit {
        config["rate_limit"] = limit;
    }
    Gateway::start(config).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_token_is_refused_in_the_callers_dialect() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let gateway = with_clients(&sim, None).await;
    let native = format!("/v1beta/models/{MODEL}:generateContent");
    let upstream_key = sim.secrets().remove(0);
    for token in ["", "wrong", "client-token-a1+/", "client-token-a1+/=x", upstream_key.as_str()] {
        let (name, value) = bearer(token);
        let answer = send(&gateway, Method::POST, "/v1/chat/completions", &[(name, &value)], &chat()).await;
        assert_eq!(answer.status, 401, "{token}: {}", answer.text);
        let error = &answer.json()["error"];
        assert_eq!(
            (&error["type"], &error["code"]),
            (&json!("authentication_error"), &json!("invalid_api_key"))
        );
        let answer = send(&gateway, Method::POST, &native, &[("x-goog-api-key", token)], &contents()).await;
        assert_eq!(answer.status, 401, "{token}: {}", answer.text);
        let error = &answer.json()["error"];
        assert_eq!((&error["code"], &error["status"]), (&json!(401), &json!("UNAUTHENTICATED")));
    }
    let answer = send(&gateway, Method::POST, &format!("{native}?key=wrong"), &[], &contents()).await;
    assert_eq!(answer.status, 401, "{}", answer.text);
    let answer = send(&gateway, Method::GET, "/v1/models", &[], &Value::Null).await;
    assert_eq!(answer.status, 401, "without a token: {}", answer.text);
    let upload = [("x-goog-upload-protocol", "resumable"), ("x-goog-upload-command", "upload, finalize")];
    let answer =
        send(&gateway, Method::POST, "/upload/v1beta/files?upload_id=guessed", &upload, &Value::Null).await;
    assert_eq!(answer.status, 401, "a guessed upload: {}", answer.text);
    assert!(calls(&sim).is_empty(), "a stranger reached the upstream");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_opens_the_door_and_stays_outside() {
    let sim = Sim::start(World::pool(2, 1)).await;
    let gateway = with_clients(&sim, None).await;
    let native = format!("/v1beta/models/{MODEL}:generateContent");
    let (name, value) = bearer(TOKEN);
    let (bearer, google) = ((name, value.as_str()), ("x-goog-api-key", TOKEN));
    let by_query = |path: &str| format!("{path}?key={ENCODED}");
    for (path, headers, body) in [
        ("/v1/chat/completions".to_owned(), vec![bearer], chat()),
        ("/v1/chat/completions".to_owned(), vec![bearer, google, ("x-api-key", TOKEN)], chat()),
        (by_query("/v1/chat/completions"), vec![bearer], chat()),
        ("/v1beta/openai/chat/completions".to_owned(), vec![google], chat()),
        (native.clone(), vec![google], contents()),
        (native.clone(), vec![bearer], contents()),
        (by_query(&native), vec![], contents()),
        (by_query(&native), vec![bearer, google], contents()),
    ] {
        let answer = send(&gateway, Method::POST, &path, &headers, &body).await;
        assert_eq!(answer.status, 200, "{path} {headers:?}: {}", answer.text);
    }
    let log = calls(&sim);
    assert_eq!(log.len(), 8);
    for request in log {
        let kind = if request.path_and_query.contains("openai") {
            Credential::Bearer
        } else {
            Credential::GoogHeader
        };
        assert_eq!(request.credentials, [kind], "{}", request.path_and_query);
        let text = format!("{} {:?}", request.path_and_query, request.headers);
        assert!(!text.contains(TOKEN) && !text.contains(ENCODED) && !text.contains("key="), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_mode_of_a_group_decides_the_credential() {
    let sim = Sim::start(World {
        auth: keyfleet_simulator::AuthSpec { goog_header_on_compat: true, ..Default::default() },
        ..World::pool(1, 1)
    })
    .await;
    let mut config = sim.config();
    config["groups"][0]["auth_mode"] = json!("api_key");
    let gateway = Gateway::start(config).await;
    assert_eq!(gateway.client().chat(MODEL, false).await.expect("an answer").status, 200);
    assert_eq!(calls(&sim)[0].credentials, [Credential::GoogHeader]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_gateway_stays_on_its_machine() {
    const GROUPS: &str = "groups: [{name: pool, api_keys: [a-key-of-the-test]}]\n";
    let check = async |server: &str, arguments: &[&str]| {
        let program = Program::new().file("config.yaml", &format!("{GROUPS}{server}\n"));
        program.run(&[&["check-config"], arguments].concat()).await
    };
    for (server, arguments) in [
        ("server: {host: 0.0.0.0}", &[][..]),
        ("server: {host: '::'}", &[]),
        ("server: {host: 192.168.1.7}", &[]),
        ("server: {host: gateway.example}", &[]),
        ("server: {}", &["-H", "0.0.0.0"]),
    ] {
        let ended = check(server, arguments).await;
        assert_eq!(ended.code, Some(78), "{server} {arguments:?}: {}", ended.said);
        let hints = ["server.clients", "server.allow_anonymous"];
        assert!(hints.iter().all(|hint| ended.said.contains(hint)), "{}", ended.said);
    }
    for server in [
        "server: {host: 127.0.0.1}",
        "server: {host: '::1'}",
        "server: {host: localhost}",
        "server: {host: 0.0.0.0, allow_anonymous: true}",
        "server: {host: 0.0.0.0, clients: [{name: a, token: a-token}]}",
    ] {
        let ended = check(server, &[]).await;
        assert_eq!(ended.code, Some(0), "{server}: {}", ended.said);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_client_has_its_own_limit() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let gateway = with_clients(&sim, Some(json!({"requests_per_minute": 6, "burst_size": 3}))).await;
    let ask = async |token: &str| {
        let (name, value) = bearer(token);
        send(&gateway, Method::POST, "/v1/chat/completions", &[(name, &value)], &chat()).await
    };
    for _ in 0..3 {
        assert_eq!(ask(TOKEN).await.status, 200);
    }
    let refused = ask(TOKEN).await;
    assert_eq!(refused.status, 429, "{}", refused.text);
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
    let seconds: u64 = refused.header("retry-after").parse().expect("when to come back");
    let millis: u64 = refused.header("retry-after-ms").parse().expect("when to come back");
    assert!((1..=10).contains(&seconds) && (1..=10_000).contains(&millis), "{seconds} s, {millis} ms");
    assert_eq!(refused.header("x-keyfleet-attempts"), "0");
    let native = format!("/v1beta/models/{MODEL}:generateContent");
    let refused = send(&gateway, Method::POST, &native, &[("x-goog-api-key", TOKEN)], &contents()).await;
    assert_eq!((refused.status, &refused.json()["error"]["status"]), (429, &json!("RESOURCE_EXHAUSTED")));
    assert_eq!(ask(OTHER).await.status, 200, "another client suffers");
    assert_eq!(ask("wrong").await.status, 401, "a stranger is told of the limit");
    assert_eq!(calls(&sim).len(), 4);
}

/// By itself a gateway leases its clients' limit from itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clients_minute_is_kept_to_and_changes_with_the_configuration() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let mut config = sim.config();
    config["server"]["clients"] = json!([{"name": "a", "token": TOKEN}, {"name": "b", "token": OTHER}]);
    config["rate_limit"] = json!({"requests_per_minute": 3});
    let mut gateway = Gateway::start(config.clone()).await;
    let ask = async |gateway: &Gateway, token: &str| {
        let (name, value) = bearer(token);
        send(gateway, Method::POST, "/v1/chat/completions", &[(name, &value)], &chat()).await
    };
    for _ in 0..3 {
        assert_eq!(ask(&gateway, TOKEN).await.status, 200);
    }
    let refused = ask(&gateway, TOKEN).await;
    assert_eq!(refused.status, 429, "{}", refused.text);
    let seconds: u64 = refused.header("retry-after").parse().expect("when to come back");
    assert!((30..=62).contains(&seconds), "{seconds} s");
    assert_eq!(ask(&gateway, OTHER).await.status, 200, "another client suffers");
    config["rate_limit"] = json!({"requests_per_minute": 5});
    gateway.write_config(&config);
    gateway.signal("HUP");
    eventually("another limit is another limit", SOON, || async {
        (ask(&gateway, TOKEN).await.status == 200).then_some(())
    })
    .await;
    assert_eq!(ask(&gateway, TOKEN).await.status, 200);
    assert_eq!(ask(&gateway, TOKEN).await.status, 429);
    assert_eq!(calls(&sim).len(), 6);
}

/// A new configuration with the same limit is no new burst.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_does_not_give_a_new_burst() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let mut config = sim.config();
    config["rate_limit"] = json!({"requests_per_minute": 1, "burst_size": 1});
    let mut gateway = Gateway::start(config.clone()).await;
    assert_eq!(gateway.client().chat(MODEL, false).await.expect("an answer").status, 200);
    config["internal_retries"] = json!(1);
    gateway.write_config(&config);
    gateway.signal("HUP");
    gateway.says("is in force").await;
    assert_eq!(gateway.client().chat(MODEL, false).await.expect("an answer").status, 429);
    config["rate_limit"]["burst_size"] = json!(100);
    gateway.write_config(&config);
    gateway.signal("HUP");
    eventually("another limit is another limit", SOON, || {
        let answer = gateway.client().chat(MODEL, false);
        async move { (answer.await.expect("an answer").status == 200).then_some(()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_clients_the_limit_is_for_each_address() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let mut config = sim.config();
    config["rate_limit"] = json!({"requests_per_minute": 1, "burst_size": 2});
    let ask = async |gateway: &Gateway, from: &str| {
        let headers = [("x-forwarded-for", from), ("authorization", "Bearer anything")];
        send(gateway, Method::POST, "/v1/chat/completions", &headers, &chat()).await.status
    };
    let direct = Gateway::start(config.clone()).await;
    let mut statuses = Vec::new();
    for from in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
        statuses.push(ask(&direct, from).await);
    }
    assert_eq!(statuses, [200, 200, 429], "anybody can name an address");

    config["server"]["trusted_proxies"] = json!(["127.0.0.0/8", "10.0.0.0/8"]);
    let behind = Gateway::start(config).await;
    for from in ["192.0.2.1", "192.0.2.2", "192.0.2.1, 10.0.0.7", "6.6.6.6, 192.0.2.2"] {
        assert_eq!(ask(&behind, from).await, 200, "{from}");
    }
    for from in ["192.0.2.1", "6.6.6.6, 192.0.2.1", "192.0.2.2, 10.0.0.7", "6.6.6.6, 192.0.2.2:4711"] {
        assert_eq!(ask(&behind, from).await, 429, "{from}");
    }
}

//! The contract in Redis, and what only a server can do wrong.

use super::scenarios::{KEEP, LONG, World, claim, elected, entry, following};
use super::server::{Server, cluster, connect, settings, shared};
use keyfleet_core::owner::Partition;
use keyfleet_core::state::{Image, Table};
use keyfleet_fabric::store::redis::{RedisStore, Settings};
use keyfleet_fabric::store::{Lead, StateStore, StoreError};
use std::sync::Arc;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

async fn alone() -> World {
    let server = shared();
    world(server.url(), server).await
}

async fn clustered() -> World {
    let server = cluster();
    world(server.url().replace("redis://", "redis-cluster://"), server).await
}

async fn world(url: String, server: Arc<Server>) -> World {
    let mut settings = settings(url);
    settings.keep = KEEP;
    let stores = [Arc::new(connect(&settings).await) as _, Arc::new(connect(&settings).await) as _];
    World { stores, _life: Box::new(server) }
}

mod one_server {
    crate::store::scenarios::suite!(super::alone);
}

mod a_cluster {
    crate::store::scenarios::suite!(super::clustered);
}

fn impatient(url: String) -> Settings {
    Settings { timeout: Duration::from_millis(500), ..settings(url) }
}

/// What `attempt` gives once the store is back.
async fn once_back<T>(store: &RedisStore, attempt: impl AsyncFn(&RedisStore) -> Result<T, StoreError>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        match attempt(store).await {
            Err(StoreError::Unreachable(_)) if Instant::now() < until => tokio::task::yield_now().await,
            done => break done.unwrap(),
        }
    }
}

fn misconfigured(result: Result<RedisStore, StoreError>) -> String {
    match result {
        Err(error @ StoreError::Misconfigured(_)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn state_that_is_divided_otherwise_is_refused() {
    let server = Server::start(&[]);
    let ours = settings(server.url());
    let of = |of| Settings { partition: Partition { number: 0, of }, ..ours.clone() };
    for partitions in [2, 1] {
        connect(&of(partitions)).await;
    }
    connect(&Settings { founds: true, ..of(1) }).await;
    for founds in [false, true] {
        let why = misconfigured(RedisStore::connect(&Settings { founds, ..of(2) }).await);
        assert!(why.contains("into 1 partitions") && why.contains("into 2"), "{why}");
        connect(&Settings { founds, ..of(1) }).await;
    }
    connect(&Settings { prefix: "another".to_owned(), ..of(2) }).await;
}

#[tokio::test]
async fn a_paused_server_is_noticed_in_time_and_a_commit_can_be_sent_again() {
    let server = Server::start(&[]);
    let store = connect(&impatient(server.url())).await;
    let mut commit = following(&elected(&store, "a").await);
    commit.entries.push(entry(Table::Keys, "k", Some("v")));
    server.pause();
    let begun = Instant::now();
    let lost = store.commit(&commit).await;
    assert!(matches!(lost, Err(StoreError::Unreachable(_))), "{lost:?}");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    server.resume();
    let meta = once_back(&store, async |store: &RedisStore| match store.commit(&commit).await {
        Err(StoreError::Conflict(stored)) => Ok(*stored),
        done => done.map(|()| commit.meta.clone()),
    })
    .await;
    assert_eq!(meta, commit.meta);
    assert_eq!(store.get(Table::Keys, "k").await, Ok(Some("v".to_owned())));
}

#[tokio::test]
async fn a_server_that_is_gone_is_noticed_in_time_and_nothing_late_reaches_the_next_one() {
    let server = Server::start(&[]);
    let store = connect(&impatient(server.url())).await;
    let meta = elected(&store, "a").await;
    let before = store.identity().await.unwrap();
    let port = server.port;
    drop(server);
    let mut commit = following(&meta);
    commit.entries.push(entry(Table::Keys, "k", Some("late")));
    for _ in 0..3 {
        let begun = Instant::now();
        let lost = [
            store.commit(&commit).await.err(),
            store.lead(&claim("a", LONG, 0)).await.err(),
            store.get(Table::Keys, "k").await.err(),
        ];
        assert!(lost.iter().all(|error| matches!(error, Some(StoreError::Unreachable(_)))), "{lost:?}");
        assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    }
    let _server = Server::start_at(port, &[]);
    // It knows nothing, no script either.
    let image = once_back(&store, async |store: &RedisStore| store.load().await).await;
    assert_eq!(
        image,
        Image::default(),
        "a command that timed out must not be sent when the connection is back"
    );
    assert_ne!(store.identity().await.unwrap(), before);
    assert!(matches!(store.commit(&commit).await, Err(StoreError::Conflict(stored)) if stored.epoch == 0));
    assert_eq!(store.lead(&claim("a", LONG, meta.epoch)).await, Ok(Lead::Nobody));
    assert_eq!(store.load().await, Ok(Image::default()));
}

#[tokio::test]
async fn scripts_that_the_server_forgot_are_given_to_it_again() {
    let server = Server::start(&[]);
    let store = connect(&settings(server.url())).await;
    let forget = || assert!(server.ask("SCRIPT FLUSH").starts_with("+OK"));
    forget();
    let meta = elected(&store, "a").await;
    forget();
    store.commit(&following(&meta)).await.unwrap();
    forget();
    assert_eq!(store.load().await.unwrap().meta.commit, 1);
    forget();
    assert_eq!(store.since(0).await, Ok(Some(Vec::new())));
    let identity = store.identity().await;
    forget();
    assert_eq!(store.identity().await, identity, "the same server, the same answer");
}

#[tokio::test]
async fn a_lock_without_an_end_does_not_last_for_ever() {
    let server = shared();
    let settings = settings(server.url());
    let store = connect(&settings).await;
    elected(&store, "a").await;
    assert!(server.ask(&format!("PERSIST {}:v1:{{0}}:lock", settings.prefix)).starts_with(":1"));
    assert_eq!(elected(&store, "b").await.epoch, 2);
}

#[tokio::test]
async fn all_keys_of_a_partition_have_its_tag() {
    let server = Server::start(&[]);
    for (prefix, number) in [("keyfleet", 0), ("gemini:", 7), ("", 1)] {
        let partition = Partition { number, of: 8 };
        let settings =
            Settings { prefix: prefix.to_owned(), partition, founds: true, ..settings(server.url()) };
        let store = connect(&settings).await;
        let mut commit = following(&elected(&store, "a").await);
        commit.entries = Table::ALL.iter().map(|table| entry(*table, "k", Some("v"))).collect();
        commit.heard.push((keyfleet_core::id::ReplicaId::new("r"), 1));
        commit.meta.rev = 1;
        commit.delta = Some(keyfleet_core::message::Delta { epoch: 1, rev: 1, prev: 0, changes: Vec::new() });
        store.commit(&commit).await.unwrap();
    }
    let answer = server.ask("KEYS *");
    let mut keys: Vec<&str> = answer.lines().filter(|line| line.contains("v1:")).collect();
    keys.sort_unstable();
    let names = [
        "accounts", "alerts", "blocks", "heard", "keys", "limits", "lock", "meta", "out", "owners", "totals",
    ];
    let tagged = ["gemini:v1:{7}", "keyfleet:v1:{0}", "v1:{1}"]
        .iter()
        .flat_map(|start| names.iter().map(move |name| format!("{start}:{name}")));
    // How the state is divided belongs to no partition.
    let mut expected: Vec<String> =
        ["gemini:v1:meta", "keyfleet:v1:meta", "v1:meta"].map(str::to_owned).into();
    expected.extend(tagged);
    expected.sort_unstable();
    assert_eq!(keys, expected);
    let scattered = Settings { prefix: "{a}".to_owned(), ..settings(server.url()) };
    assert!(misconfigured(RedisStore::connect(&scattered).await).contains("brace"));
}

#[tokio::test]
async fn a_server_that_evicts_is_refused_with_the_remedy() {
    let server = Server::start(&["--maxmemory-policy", "allkeys-lru"]);
    let settings = settings(server.url());
    let error = misconfigured(RedisStore::connect(&settings).await);
    assert!(error.contains("CONFIG SET maxmemory-policy noeviction"), "{error}");
    assert!(server.ask("CONFIG SET maxmemory-policy noeviction").starts_with("+OK"));
    connect(&settings).await;
}

#[tokio::test]
async fn users_need_their_password_and_rights_and_errors_do_not_show_it() {
    let rights = "~test:* +@connection +@read +@write +@scripting";
    let users = format!(
        "--user all on >sesam-all {rights} +info --user few on >sesam-few {rights} --user default off"
    );
    let server = Server::start(&users.split(' ').collect::<Vec<_>>());
    let url = |user: &str| format!("redis://{user}@127.0.0.1:{}/0", server.port);
    let store = connect(&settings(url("all:sesam-all"))).await;
    let meta = elected(&store, "a").await;
    store.commit(&following(&meta)).await.unwrap();
    assert_eq!(store.load().await.unwrap().meta.commit, 1);
    assert!(!format!("{store:?} {:?}", settings(url("all:sesam-all"))).contains("sesam"));
    let error = misconfigured(RedisStore::connect(&settings(url("few:sesam-few"))).await);
    assert!(error.contains("+info") && !error.contains("sesam"), "{error}");
    for wrong in ["all:sesam-wrong", "nobody:sesam-all"] {
        let error = misconfigured(RedisStore::connect(&settings(url(wrong))).await);
        assert!(!error.contains("sesam"), "{error}");
    }
}

#[tokio::test]
async fn a_wrong_url_is_refused_without_being_shown() {
    for url in [
        "sesam",
        "http://:sesam@host",
        "redis://:sesam@host:port/0",
        "redis://:sesam@host/sesam",
        "redis://a:sesam@host:1?node=b:2",
        "redis-cluster://h:1?node=a:sesam@b:1",
        "redis-sentinel://:sesam@h:1",
        "redis+unix:///sesam",
        "rediss://:sesam@",
    ] {
        let error = misconfigured(RedisStore::connect(&settings(url)).await);
        assert!(error.contains("redis-sentinel://") && !error.contains("sesam"), "{url}: {error}");
    }
    let gone = settings(format!("redis://u:sesam@127.0.0.1:{}", super::server::free_port()));
    let error = RedisStore::connect(&gone).await.unwrap_err();
    assert!(matches!(&error, StoreError::Unreachable(why) if !why.contains("sesam")), "{error}");
}

#[tokio::test]
async fn tls_trusts_the_given_authority_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let generated = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(path("cert.pem"), generated.cert.pem()).unwrap();
    std::fs::write(path("other.pem"), other.cert.pem()).unwrap();
    std::fs::write(path("key.pem"), generated.signing_key.serialize_pem()).unwrap();
    let port = super::server::free_port();
    let (number, certificate, key) = (port.to_string(), path("cert.pem"), path("key.pem"));
    let server = Server::start_at(
        port,
        &[
            ["--port", "0", "--tls-port", &number],
            ["--tls-cert-file", &certificate, "--tls-key-file", &key],
            ["--tls-ca-cert-file", &certificate, "--tls-auth-clients", "no"],
        ]
        .concat(),
    );
    let trusting = |ca: &str| Settings {
        ca: Some(ca.into()),
        ..settings(format!("rediss://localhost:{}", server.port))
    };
    let store = connect(&trusting(&certificate)).await;
    assert_eq!(elected(&store, "a").await.epoch, 1);
    let error = RedisStore::connect(&trusting(&path("other.pem"))).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable(_)), "{error}");
    misconfigured(RedisStore::connect(&trusting(&path("missing.pem"))).await);
    misconfigured(RedisStore::connect(&trusting(&key)).await);
}

#[tokio::test]
async fn sentinel_leads_to_the_master_and_to_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let first = Server::start(&[]);
    let master = first.port.to_string();
    let second = Server::start(&["--replicaof", "127.0.0.1", &master, "--repl-diskless-sync-delay", "0"]);
    let file = folder.path().join("sentinel.conf");
    std::fs::write(
        &file,
        format!(
            "sentinel monitor pool 127.0.0.1 {master} 1\nsentinel down-after-milliseconds pool 500\n\
             sentinel failover-timeout pool 5000\n"
        ),
    )
    .unwrap();
    let sentinel = Server::sentinel(&file);
    let until = Instant::now() + PATIENCE;
    while !second.ask("INFO replication").contains("master_link_status:up")
        || !sentinel.ask("SENTINEL replicas pool").contains(&second.port.to_string())
    {
        assert!(Instant::now() < until, "the replica does not follow");
    }
    let url = format!("redis-sentinel://127.0.0.1:{}?sentinelServiceName=pool", sentinel.port);
    let store = connect(&impatient(url)).await;
    let meta = elected(&store, "a").await;
    store.commit(&following(&meta)).await.unwrap();
    let before = store.identity().await.unwrap();
    while !second.ask("INFO replication").contains("role:master") {
        assert!(Instant::now() < until, "nothing is promoted");
        // Refused for as long as Sentinel has not seen that the replica is in order.
        sentinel.ask("SENTINEL failover pool");
    }
    drop(first);
    let image = once_back(&store, async |store: &RedisStore| store.load().await).await;
    assert_eq!(image.meta.epoch, 1);
    once_back(&store, async |store: &RedisStore| store.lead(&claim("a", LONG, 1)).await).await;
    assert_ne!(store.identity().await.unwrap(), before, "another server");
}

//! What the answers of a real HTTP server mean, and what of them may be said.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use futures_util::stream;
use http::StatusCode;
use keyfleet_core::alert::Policy;
use keyfleet_core::alert::seen::Thresholds;
use keyfleet_service::config::{Alerts, SigningKey};
use parking_lot::Mutex;
use tokio::net::TcpListener;

use super::super::*;
use super::{NOW, item, notice};
use crate::alerts;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(20);
/// A secret in the path of each URL.
const SECRET: &str = "sEcReT-path";
const ROUTING: &str = "0123456789abcdef0123456789abcdef";

type Reply = fn() -> Response;

struct Sink {
    address: SocketAddr,
    got: Arc<Mutex<Vec<(String, http::HeaderMap, String)>>>,
}

impl Sink {
    /// Answers every request so.
    async fn start(reply: Reply) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let got = Arc::new(Mutex::new(Vec::new()));
        let router = Router::new().fallback(take).with_state((reply, got.clone()));
        tokio::spawn(async { axum_serve(listener, router).await });
        Self { address, got }
    }

    fn url(&self) -> Secret {
        Secret::new(format!("http://u5er-name:pa55word@{}/{SECRET}/x?token={SECRET}", self.address))
    }

    /// One attempt of a receiver of that type.
    async fn told(&self, wire: Wire) -> Result<(), Undelivered> {
        self.told_within(wire, LONG).await
    }

    async fn told_within(&self, wire: Wire, patience: Duration) -> Result<(), Undelivered> {
        let notice = notice(vec![item(1, "a")]);
        let told = deliver_within(&Clients::default().by(None).unwrap(), &wire, &notice, NOW, patience).await;
        if let Err(undelivered) = &told {
            let why = undelivered.why();
            assert!(why.starts_with(&format!("http://{}", self.address)), "{why}");
            for secret in [SECRET, "u5er-name", "pa55word", ROUTING, "token"] {
                assert!(!why.contains(secret), "{why}");
            }
        }
        told
    }

    fn all(&self) -> [Wire; 6] {
        let url = self.url();
        [
            Wire::Slack { url: url.clone() },
            Wire::Webhook { url: url.clone(), keys: vec![SigningKey::new(vec![7; 32])] },
            Wire::PagerDuty { url: url.clone(), routing_key: Secret::new(ROUTING) },
            Wire::Alertmanager { url: url.clone() },
            Wire::Discord { url: url.clone() },
            Wire::Teams { url },
        ]
    }
}

/// The part of a server that the coordinator has, too.
async fn axum_serve(listener: TcpListener, router: Router) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let service = hyper_util::service::TowerToHyperService::new(router.clone());
        tokio::spawn(
            hyper::server::conn::http1::Builder::new()
                .serve_connection(hyper_util::rt::TokioIo::new(stream), service),
        );
    }
}

#[expect(clippy::type_complexity, reason = "the state of one test server")]
async fn take(
    State((reply, got)): State<(Reply, Arc<Mutex<Vec<(String, http::HeaderMap, String)>>>)>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    got.lock().push((parts.uri.to_string(), parts.headers, String::from_utf8(body.into()).unwrap()));
    reply()
}

fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}

fn is_never(told: &Result<(), Undelivered>) -> bool {
    matches!(told, Err(Undelivered::Never { .. }))
}

#[tokio::test]
async fn slack_has_taken_what_it_calls_ok() {
    let replies: [(Reply, &str); 10] = [
        (|| answer(200, &[], "ok"), "taken"),
        (|| answer(200, &[], r#"{"ok": true}"#), "taken"),
        (|| answer(200, &[], "<html>a proxy's login</html>"), "later"),
        (|| answer(204, &[], ""), "later"),
        (|| answer(400, &[], "invalid_blocks"), "refused"),
        (|| answer(403, &[], "action_prohibited"), "never"),
        (|| answer(404, &[], "no_service"), "never"),
        (|| answer(410, &[], "channel_is_archived"), "never"),
        (|| answer(429, &[("retry-after", "30")], "rate_limited"), "later"),
        (|| answer(503, &[], ""), "later"),
    ];
    for (reply, expected) in replies {
        let sink = Sink::start(reply).await;
        let told = sink.told(Wire::Slack { url: sink.url() }).await;
        let got = match &told {
            Ok(()) => "taken",
            Err(Undelivered::Later { .. }) => "later",
            Err(Undelivered::Refused { .. }) => "refused",
            Err(Undelivered::Never { .. }) => "never",
        };
        assert_eq!(got, expected, "{told:?}");
        let status = reply().status().as_u16();
        assert!(told.err().is_none_or(|e| e.why().contains(&format!("answered {status}"))));
    }
}

#[tokio::test]
async fn the_others_have_taken_what_succeeds() {
    let success: Reply = || answer(202, &[], "{}");
    let sink = Sink::start(success).await;
    for wire in sink.all().into_iter().skip(1) {
        sink.told(wire).await.unwrap();
    }
    let got = sink.got.lock();
    let paths: Vec<&str> = got.iter().map(|(path, ..)| path.as_str()).collect();
    let own = format!("/{SECRET}/x?token={SECRET}");
    let api = format!("/{SECRET}/x/api/v2/alerts?token={SECRET}");
    assert_eq!(paths, [&own, &own, &api, &own, &own]);
    for (_, headers, body) in got.iter() {
        assert_eq!(headers["content-type"], "application/json");
        assert_eq!(headers["authorization"], "Basic dTVlci1uYW1lOnBhNTV3b3Jk");
        assert!(serde_json::from_str::<serde_json::Value>(body).is_ok(), "{body}");
    }
    // What was signed is what came.
    let (_, headers, body) = &got[0];
    let signed = webhook::headers(&[SigningKey::new(vec![7; 32])], "msg-1", NOW, body);
    for (name, value) in signed {
        assert_eq!(headers[name], value);
    }
}

#[tokio::test]
async fn what_is_gone_is_gone_for_all_and_what_is_busy_is_asked_later() {
    let gone = Sink::start(|| answer(410, &[], "")).await;
    let busy = Sink::start(|| answer(429, &[("retry-after", "7")], "")).await;
    let broken = Sink::start(|| answer(500, &[("retry-after", "999999")], "")).await;
    for wire in gone.all() {
        assert!(is_never(&gone.told(wire).await));
    }
    for (sink, seconds) in [(busy, 7), (broken, 3_600)] {
        for wire in sink.all() {
            match sink.told(wire).await {
                Err(Undelivered::Later { after, .. }) => {
                    assert_eq!(after, Some(Duration::from_secs(seconds)));
                }
                other => panic!("{other:?}"),
            }
        }
    }
    let precise = Sink::start(|| answer(429, &[("retry-after", "1")], r#"{"retry_after": 0.25}"#)).await;
    match precise.told(Wire::Discord { url: precise.url() }).await {
        Err(Undelivered::Later { after, .. }) => assert_eq!(after, Some(Duration::from_millis(250))),
        other => panic!("{other:?}"),
    }
    // A login may be repaired; the address of a webhook that is refused cannot.
    let strange = Sink::start(|| answer(401, &[], "")).await;
    let never: Vec<bool> = futures_util::future::join_all(strange.all().map(|wire| strange.told(wire)))
        .await
        .iter()
        .map(is_never)
        .collect();
    assert_eq!(never, [true, false, false, false, true, false]);
}

#[tokio::test]
async fn a_message_that_is_refused_says_nothing_about_the_next() {
    for reply in [(|| answer(400, &[], "")) as Reply, || answer(413, &[], ""), || answer(422, &[], "")] {
        let sink = Sink::start(reply).await;
        for wire in sink.all() {
            let told = sink.told(wire).await;
            assert!(matches!(told, Err(Undelivered::Refused { .. })), "{told:?}");
        }
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    for (reply, never) in [
        ((|| answer(308, &[("location", "/elsewhere")], "")) as Reply, true),
        (|| answer(302, &[("location", "/elsewhere")], ""), false),
    ] {
        let sink = Sink::start(reply).await;
        for wire in sink.all() {
            assert_eq!(is_never(&sink.told(wire).await), never);
        }
        assert!(sink.got.lock().iter().all(|(path, ..)| !path.contains("elsewhere")));
        assert_eq!(sink.got.lock().len(), 6);
    }
}

#[tokio::test]
async fn a_body_without_end_is_read_to_a_limit() {
    let sink = Sink::start(|| {
        let bytes = Bytes::from_static(&[b'x'; 1024]);
        answer(200, &[], Body::from_stream(stream::repeat(Ok::<_, Infallible>(bytes))))
    })
    .await;
    let patience = LONG * 10;
    let slack = tokio::time::timeout(LONG, sink.told_within(Wire::Slack { url: sink.url() }, patience)).await;
    assert!(matches!(slack, Ok(Err(Undelivered::Later { .. }))), "{slack:?}");
    let webhook = Wire::Webhook { url: sink.url(), keys: vec![] };
    assert_eq!(tokio::time::timeout(LONG, sink.told_within(webhook, patience)).await, Ok(Ok(())));
}

#[tokio::test]
async fn who_hangs_is_left() {
    let patience = Duration::from_millis(200);
    // The kernel takes the connection, and nobody ever does.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = Sink { address: listener.local_addr().unwrap(), got: Arc::default() };
    let begin = Instant::now();
    for wire in silent.all() {
        match silent.told_within(wire, patience).await {
            Err(Undelivered::Later { why, .. }) => {
                assert!(why.ends_with("did not answer within 200ms"), "{why}");
            }
            other => panic!("{other:?}"),
        }
    }
    // The status has come, and the rest never does.
    let half =
        Sink::start(|| answer(200, &[], Body::from_stream(stream::pending::<Result<Bytes, Infallible>>())))
            .await;
    let webhook = Wire::Webhook { url: half.url(), keys: vec![] };
    assert_eq!(half.told_within(webhook, patience).await, Ok(()));
    assert!(half.told_within(Wire::Slack { url: half.url() }, patience).await.is_err());
    assert!(begin.elapsed() < LONG);
}

#[tokio::test]
async fn who_cannot_be_reached_is_named_and_nothing_else() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sink = Sink { address: free.local_addr().unwrap(), got: Arc::default() };
    drop(free);
    for wire in sink.all() {
        match sink.told(wire).await {
            Err(Undelivered::Later { why, .. }) => assert!(why.contains("cannot be reached: "), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn an_answer_is_shown_unless_it_repeats_a_secret() {
    let plain = Sink::start(|| answer(400, &[], "bad\n <label>")).await;
    let told = plain.told(Wire::Teams { url: plain.url() }).await.unwrap_err();
    assert!(told.why().ends_with("answered 400 `bad  <label>`"), "{told:?}");
    for reply in [(|| answer(404, &[], format!("no webhook {SECRET}"))) as Reply, || {
        answer(400, &[], format!("wrong key {ROUTING}"))
    }] {
        let echo = Sink::start(reply).await;
        for wire in echo.all() {
            if matches!(wire, Wire::PagerDuty { .. }) || reply().status() == 404 {
                assert!(!echo.told(wire).await.unwrap_err().why().contains('`'));
            }
        }
    }
}

#[tokio::test]
async fn receivers_and_the_heartbeat_are_reached_through_a_proxy() {
    let proxy = Sink::start(|| answer(200, &[], "ok")).await;
    let own = Sink::start(|| answer(200, &[], "ok")).await;
    let way = |sink: &Sink| Some(Secret::new(format!("http://{}", sink.address)));
    // Only the proxies know where that is.
    let url = Secret::new("http://elsewhere.invalid/x");
    let receiver = |name: &str, proxy_url| {
        let wire = Wire::Webhook { url: url.clone(), keys: Vec::new() };
        Receiver { name: name.to_owned(), wire, proxy_url }
    };
    let receivers = vec![receiver("first", way(&proxy)), receiver("second", way(&own))];
    let (policy, thresholds) = (Policy::default(), Thresholds::default());
    let heartbeat_url = Some(url.clone());
    let alerts = Alerts { policy, thresholds, receivers, proxy_url: way(&proxy), heartbeat_url };
    let tried = alerts::test(&alerts, "keyfleet", None).await;
    assert!(tried.len() == 3 && tried.iter().all(|(_, told)| told.is_ok()), "{tried:?}");
    for (sink, expected) in [(&proxy, 2), (&own, 1)] {
        let got = sink.got.lock();
        assert_eq!(got.len(), expected);
        assert!(got.iter().all(|(uri, ..)| uri == "http://elsewhere.invalid/x"));
    }
}

#[tokio::test]
async fn a_test_message_goes_to_every_receiver() {
    let good = Sink::start(|| answer(200, &[], "ok")).await;
    let bad = Sink::start(|| answer(404, &[], "no_service")).await;
    let receiver = |wire: Wire| Receiver { name: format!("my-{}", wire.name()), wire, proxy_url: None };
    let mut receivers: Vec<Receiver> = good.all().map(receiver).into();
    let wire = Wire::Slack { url: bad.url() };
    receivers.push(Receiver { name: "bad".to_owned(), wire, proxy_url: None });
    let (policy, thresholds) = (Policy::default(), Thresholds::default());
    let alerts = Alerts { policy, thresholds, receivers, proxy_url: None, heartbeat_url: Some(good.url()) };
    let tried = alerts::test(&alerts, "keyfleet", None).await;
    let failed: Vec<_> = tried.iter().filter(|(_, told)| told.is_err()).collect();
    assert_eq!(tried.len(), 8);
    let why = format!("http://{} answered 404 `no_service`", bad.address);
    assert_eq!(failed, [&("bad".to_owned(), Err(why))]);
    // Those that keep incidents are told of the end, too, and the heartbeat is one request without a body.
    assert_eq!(good.got.lock().len(), 6 + 2 + 1);
    let resolved =
        good.got.lock().iter().filter(|(.., body)| body.contains(r#""event_action":"resolve""#)).count();
    let beats = good.got.lock().iter().filter(|(.., body)| body.is_empty()).count();
    assert_eq!((resolved, beats), (1, 1));
    assert_eq!(alerts::test(&alerts, "keyfleet", Some("bad")).await.len(), 1, "one alone");
}

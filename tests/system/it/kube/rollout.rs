//! Pods are replaced or taken away, and no answer is lost that a pod has the time to end.

use std::time::{Duration, Instant};

use keyfleet_simulator::{Action, Rule, World};
use keyfleet_tests::{Answer, Crowd, Deployment, Front, Sink, Tally, Wish, eventually, judge, load_during};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{FASTER, LAG, LONG, MODEL, Release};

/// Open all the time.
const STREAMS: u64 = 200;
/// A second, on a busy machine and without optimisation. `KEYFLEET_TEST_LOAD` names another rate.
const REQUESTS: u64 = 100;
/// So long that every pod is told to end while it has some.
const STREAM: Duration = Duration::from_secs(6);
/// Of all requests, every such one comes on a connection of its own.
const FORGETFUL: u64 = 4;

/// Something that an operator does to a deployment under load.
struct Scene {
    deployment: Deployment,
    streams: Crowd,
    /// Where alerts go.
    sink: Sink,
}

impl Scene {
    async fn start() -> Self {
        let release = Release::install(&[]).await;
        let drain = (release.drain() / FASTER).as_secs();
        let sink = Sink::start().await;
        let config = json!({
            "server": {"state_file": "", "drain_timeout_secs": drain},
            "limits": [{"models": "*", "rpm": 1_000_000}],
            "alerts": {
                "group_wait_secs": 0,
                "receivers": [{"name": "sink", "type": "webhook", "url": sink.url()}],
            },
        });
        let pod = release.pod().faster(FASTER);
        let deployment = Deployment::start(World::pool(4, 1), config, 3, pod, LAG).await;
        let ms = u64::try_from(STREAM.as_millis()).expect("a short time");
        let pause = Action::StallMidStream { after_chunks: 2, ms: Some(ms) };
        deployment.cluster().sim().rules(vec![Rule::new(pause).model(LONG)]);
        let wish = Wish { model: LONG, stream: true };
        let front = Front::to(deployment.client());
        let streams = Crowd::wishing(&front, STREAMS, Duration::from_millis(20), &[wish], 1);
        Self { deployment, streams, sink }
    }

    /// Requests all the while; what became of them, and what pods that end still had to do when all were told.
    async fn during(
        &mut self,
        what: impl AsyncFnOnce(&mut Deployment),
    ) -> (Vec<reqwest::Result<Answer>>, f64) {
        let rate = std::env::var("KEYFLEET_TEST_LOAD").ok().and_then(|rate| rate.parse().ok());
        let (client, fresh) = (self.deployment.client(), self.deployment.forgetful_client());
        let mut count = 0;
        let send = || {
            let client = if every(FORGETFUL, &mut count) { &fresh } else { &client };
            client.chat(MODEL, false)
        };
        let deployment = &mut self.deployment;
        let work = async {
            what(deployment).await;
            deployment.until_told_to_end().await;
            let held = deployment.metric_of_leaving("keyfleet_inflight_requests").await;
            deployment.settle().await;
            held
        };
        let began = Instant::now();
        let (held, answers) = load_during(rate.unwrap_or(REQUESTS), work, send).await;
        eprintln!(
            "{} requests in {:?}; pods told to end had {held} requests left",
            answers.len(),
            began.elapsed()
        );
        (answers, held)
    }

    /// Every client has what it asked for, and the upstream saw exactly that; nobody was told of anything.
    async fn end(self, answers: Vec<reqwest::Result<Answer>>) {
        let tally = self.streams.stop().await;
        let mut ends = Tally::default().ends;
        for answer in &answers {
            let end = match answer {
                Ok(answer) if answer.whole => answer.status.to_string(),
                Ok(_) => "broken answer".to_owned(),
                Err(error) if error.is_timeout() => "no answer in time".to_owned(),
                Err(_) => "no answer".to_owned(),
            };
            *ends.entry(end).or_default() += 1;
        }
        eprintln!("requests {ends:?}; streams {:?}, the slowest {:?}", tally.ends, tally.slowest);
        assert!(ends.len() == 1 && ends.contains_key("200"), "every request is answered: {ends:?}");
        assert!(tally.ends.len() == 1 && tally.of("200") >= STREAMS, "every stream is whole: {tally:?}");
        assert_answered_once(&self.deployment, answers.len() as u64 + tally.of("200")).await;
        assert_only_a_crash_is_told(self.deployment, &self.sink).await;
    }
}

/// Whether it is the turn of every `n`th.
fn every(n: u64, count: &mut u64) -> bool {
    *count += 1;
    count.is_multiple_of(n)
}

fn chat(model: &str, stream: bool) -> Value {
    json!({"model": model, "stream": stream, "messages": [{"role": "user", "content": "Say something."}]})
}

/// What the upstream saw is what clients got and what was counted: as many answers, and nothing else.
async fn assert_answered_once(deployment: &Deployment, answers: u64) {
    let counts = judge::seen(&deployment.cluster().sim().log());
    let (answered, failed) = counts
        .values()
        .fold((0, 0), |(answered, failed), count| (answered + count.answered, failed + count.failed));
    assert_eq!((answered, failed), (answers, 0), "by the upstream's log");
    deployment.cluster().settled_as_seen().await;
}

/// A pod that ends without a word is told of as lost. Those that ended before would have been told of before, or with it.
async fn assert_only_a_crash_is_told(mut deployment: Deployment, sink: &Sink) {
    deployment.crash();
    let messages = eventually("the crash is told", Duration::from_mins(1), || async {
        Some(sink.messages()).filter(|messages| !messages.is_empty())
    })
    .await;
    let lost: Vec<_> = messages.iter().map(|message| &message.body["data"]).collect();
    assert!(
        lost.len() == 1
            && lost[0]["rule"] == "replica_lost"
            && lost[0]["alerts"].as_array().is_some_and(|alerts| alerts.len() == 1),
        "{lost:#?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_update_loses_nothing() {
    let mut scene = Scene::start().await;
    let before = scene.deployment.revisions().await;
    let folder = TempDir::new().expect("a folder");
    scene.deployment.upgrade(folder.path());
    let (answers, held) = scene.during(async |deployment| deployment.roll().await).await;
    assert!(held > 0.0, "no pod that was told to end had a stream left");
    let after = scene.deployment.revisions().await;
    assert!(after.len() == before.len() && !after.contains(&before[0]), "{before:?} became {after:?}");
    scene.end(answers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_drained_takes_nothing_with_it() {
    let mut scene = Scene::start().await;
    let (answers, held) = scene.during(async |deployment| deployment.drain_node(2).await).await;
    assert!(held > 0.0, "no pod that was told to end had a stream left");
    scene.end(answers).await;
}

/// Two of three pods at once: nobody asks a disruption budget.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scaling_down_ends_what_outlives_the_drain_time_and_says_so() {
    const DRAIN: Duration = Duration::from_secs(8);
    let release = Release::install(&[]).await;
    let spec = release.pod();
    assert!(spec.grace > spec.pre_stop + release.drain(), "killed while it drains: {spec:?}");
    let spec = spec.faster(FASTER);
    let rest = spec.pre_stop + DRAIN / 4;
    let config = json!({"server": {"state_file": "", "drain_timeout_secs": DRAIN.as_secs()}});
    let mut deployment = Deployment::start(World::pool(4, 1), config, 3, spec, LAG).await;
    let stall = |ms: Option<Duration>| Action::StallMidStream {
        after_chunks: 2,
        ms: ms.map(|ms| u64::try_from(ms.as_millis()).expect("a short time")),
    };
    deployment
        .cluster()
        .sim()
        .rules(vec![Rule::new(stall(Some(rest))).model(LONG), Rule::new(stall(None)).model(MODEL)]);
    // Each on a connection of its own, and so anywhere.
    let client = deployment.forgetful_client();
    let ask = |model| client.post("/v1/chat/completions", &chat(model, true));
    let short: Vec<_> = (0..30).map(|_| tokio::spawn(ask(LONG))).collect();
    let mut endless = tokio::task::JoinSet::new();
    for _ in 0..30 {
        endless.spawn(ask(MODEL));
    }
    eventually("every stream has begun", Duration::from_secs(20), || async {
        (deployment.metric("keyfleet_inflight_requests").await.iter().sum::<f64>() >= 60.0).then_some(())
    })
    .await;
    deployment.scale(1).await;
    deployment.settle().await;

    for stream in short {
        let answer = stream.await.expect("the stream ends").expect("an answer");
        let text = &answer.text;
        assert!(answer.whole && text.ends_with("data: [DONE]\n\n") && !text.contains("error"), "{text}");
    }
    let remaining = deployment.metric("keyfleet_inflight_requests").await.iter().sum::<f64>();
    let mut ended = 0.0;
    while let Some(answer) = endless.try_join_next() {
        let answer = answer.expect("the stream ends").expect("an answer");
        let last = answer.text.trim_end().rsplit("data: ").next().expect("an event");
        let last: Value = serde_json::from_str(last).expect("an event that is JSON");
        assert!(answer.whole && last["error"]["code"] == 503, "{}", answer.text);
        ended += 1.0;
    }
    eprintln!("{ended} streams were ended, {remaining} go on");
    assert!(ended > 0.0 && (ended + remaining - 30.0).abs() < 0.5, "{ended} ended, {remaining} go on");
}

//! What an upstream answer means, seen from outside: what the client gets, how many upstream calls that took, and who
//! is left alone afterwards. The last is read from later traffic in the simulator's log, not from what the gateway says.

mod bounds;
mod placement;
mod refusals;
mod sparing;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _};
use keyfleet_simulator::{Family, Key, Received, Rule, World};
use keyfleet_tests::{Answer, Client, Gateway, Sim, eventually, read};
use serde_json::{Value, json};

const MODEL: &str = "gemini-2.5-flash";
const OTHER_MODEL: &str = "gemini-2.5-pro";
/// Enough for every key to have its turn several times, also one that lost some of its score.
const TURNS: usize = 24;
/// Scenarios of one table that run at the same time.
const AT_ONCE: usize = 6;
/// A refusal without an upstream call is a matter of a millisecond; this is what a busy machine may make of it, and less
/// than any wait for a quota.
const QUICK: Duration = Duration::from_millis(1_500);

/// Who stays without traffic after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Out {
    Nobody,
    Key,
    KeyAndModel,
    ProjectAndModel,
    Project,
    BillingAccount,
}

/// What the client gets when every key fails in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// The upstream's error as it is, after one call.
    Own(u16),
    /// 502, and no hope: as many calls as keys (or projects) are there.
    NoKeyWorks,
    /// 429 and the seconds to wait; one call per project.
    Exhausted(u64, u64),
    /// The model's own error, after one call and two more.
    Retried(u16),
    /// The way out rests for some seconds: a call for each of three projects.
    WayOut(u16),
}

/// The table: what each family means.
fn meaning(family: Family) -> (Out, Seen) {
    let minute = Seen::Exhausted(1, 66);
    let hours = |from: u64, to: u64| Seen::Exhausted(from * 3_600, to * 3_600);
    match family {
        Family::BadRequest
        | Family::UnknownField
        | Family::TooLong
        | Family::ThoughtSignature
        | Family::PayloadSize => (Out::Nobody, Seen::Own(400)),
        Family::File403 | Family::Cached403 | Family::PermissionDenied => (Out::Nobody, Seen::Own(403)),
        Family::ModelNotFound | Family::Empty404 | Family::Html404 => (Out::Nobody, Seen::Own(404)),
        Family::Html413 => (Out::Nobody, Seen::Own(413)),
        Family::ModelNotAvailable => (Out::KeyAndModel, Seen::NoKeyWorks),
        Family::ApiKeyInvalid
        | Family::ApiKeyNotFound
        | Family::ApiKeyExpired
        | Family::AccessTokenUnsupported
        | Family::CredentialsMissing
        | Family::Leaked
        | Family::ServiceBlocked
        | Family::ReferrerBlocked
        | Family::IpBlocked
        | Family::Unregistered => (Out::Key, Seen::NoKeyWorks),
        // One such refusal may be a whim of the upstream's; only a row of them blocks the key.
        Family::MultipleCredentials => (Out::Nobody, Seen::NoKeyWorks),
        Family::Suspended | Family::Denied | Family::ServiceDisabled => (Out::Project, Seen::NoKeyWorks),
        Family::PerMinute429 | Family::Tokens429 => (Out::ProjectAndModel, minute),
        Family::Bare429 | Family::SpendRate => (Out::ProjectAndModel, Seen::WayOut(429)),
        Family::NoDetails429 => (Out::ProjectAndModel, Seen::Exhausted(25, 35)),
        // Midnight may be near: then the announced time is short.
        Family::PerDay429 | Family::MinuteAndDay429 => {
            (Out::ProjectAndModel, Seen::Exhausted(60, 26 * 3_600))
        }
        Family::LimitZero => (Out::ProjectAndModel, hours(23, 26)),
        Family::Prepay | Family::SpendingCap => (Out::Project, hours(0, 3)),
        Family::BillingCap => (Out::BillingAccount, hours(0, 3)),
        Family::Location => (Out::Nobody, Seen::WayOut(503)),
        Family::Html429 => (Out::Nobody, Seen::WayOut(429)),
        Family::Cancelled => (Out::Nobody, Seen::Retried(499)),
        Family::Internal => (Out::Nobody, Seen::Retried(500)),
        Family::Html502 => (Out::Nobody, Seen::Retried(502)),
        Family::Overloaded | Family::Overloaded2025 => (Out::Nobody, Seen::Retried(503)),
        Family::Deadline => (Out::Nobody, Seen::Retried(504)),
    }
}

/// `p1` with two keys, and three projects with one; the first two are paid for together.
fn world() -> World {
    let mut world = World::pool(4, 1);
    world.keys.push(Key::new("k5", "p1"));
    for project in &mut world.projects[..2] {
        project.billing_account = Some("acme".into());
    }
    world
}

fn config(sim: &Sim) -> Value {
    let mut config = sim.config();
    config["projects"] =
        json!([{"id": "p1", "billing_account": "acme"}, {"id": "p2", "billing_account": "acme"}]);
    config
}

/// The requests of clients; the prober's are others.
fn calls(sim: &Sim) -> Vec<Received> {
    let mut log = sim.log();
    log.retain(|request| request.method == "POST");
    log
}

fn generate(client: &Client, model: &str) -> reqwest::RequestBuilder {
    let body = json!({"contents": [{"role": "user", "parts": [{"text": "Say something."}]}]});
    client
        .request(reqwest::Method::POST, &format!("/v1beta/models/{model}:generateContent"))
        .header("content-type", "application/json")
        .body(body.to_string())
}

async fn native(client: &Client, model: &str) -> Answer {
    read(generate(client, model).header("x-goog-api-key", "placeholder")).await.expect("an answer")
}

async fn chat(client: &Client, model: &str) -> Answer {
    client.chat(model, false).await.expect("an answer")
}

/// Checks the envelope of an error in the dialect of the surface, and gives what is in it.
fn envelope(answer: &Answer, is_openai: bool) -> Value {
    let error = answer.json()["error"].clone();
    let told = format!("{} {}", answer.status, answer.text);
    assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "no message: {told}");
    if is_openai {
        assert!(
            error["type"].is_string() && (error["code"].is_string() || error["code"].is_null()),
            "{told}"
        );
    } else {
        assert_eq!(error["code"], answer.status, "{told}");
        assert!(error["status"].is_string(), "{told}");
    }
    assert!(!answer.header("x-request-id").is_empty(), "{told}");
    error
}

/// Sends requests for a model one after the other, and says which keys the simulator saw.
async fn keys_used(sim: &Sim, client: &Client, model: &str) -> HashSet<String> {
    let before = calls(sim).len();
    for _ in 0..TURNS {
        let answer = chat(client, model).await;
        assert_eq!(answer.status, 200, "{model}: {}", answer.text);
    }
    calls(sim).into_iter().skip(before).filter_map(|request| request.key_id).collect()
}

/// One key fails once: the client sees nothing of it unless it is its own fault, and only who deserves it is left out.
async fn one_failure(family: Family) {
    let (out, seen) = meaning(family);
    if out == Out::BillingAccount {
        return billing_account_is_out(family).await;
    }
    let sim = Sim::start(world()).await;
    // Before the gateway starts: what its prober sees has to be the same.
    let terminal = matches!(seen, Seen::NoKeyWorks) && matches!(out, Out::Key | Out::Project);
    sim.rules(vec![match out {
        Out::Key if terminal => Rule::family(family).key("k1"),
        Out::Project if terminal => Rule::family(family).project("p1"),
        _ => Rule::family(family).path("chat/completions").times(1),
    }]);
    let gateway = Gateway::start(config(&sim)).await;
    let client = gateway.client();

    let answer = chat(&client, MODEL).await;
    let own_fault = matches!(seen, Seen::Own(_));
    assert_eq!(answer.status == 200, !own_fault, "{family:?}: {} {}", answer.status, answer.text);
    let first = calls(&sim);
    assert_eq!(answer.header("x-keyfleet-attempts"), first.len().to_string(), "{family:?}");
    if own_fault {
        assert_eq!(first.len(), 1, "{family:?} was tried again");
    }
    let victim = if terminal {
        "k1".to_owned()
    } else {
        assert_ne!(first[0].status, 200, "{family:?}");
        first[0].key_id.clone().expect("a key of the pool")
    };
    if let [refused, next, ..] = &first[..]
        && matches!(out, Out::ProjectAndModel | Out::Project)
    {
        assert_ne!(refused.project, next.project, "{family:?}: a sibling key was tried");
        let pause = Duration::from_micros(next.mono_us - refused.mono_us);
        assert!(pause < QUICK, "{family:?}: the next project came after {pause:?}");
    }
    let of_model = keys_used(&sim, &client, MODEL).await;
    let of_other = keys_used(&sim, &client, OTHER_MODEL).await;
    let (mut shut_for_model, mut shut_for_other) = (HashSet::new(), HashSet::new());
    let project = |key: &str| if key == "k5" { "p1".to_owned() } else { key.replace('k', "p") };
    for key in ["k1", "k2", "k3", "k4", "k5"] {
        let (is_key, is_project) = (key == victim, project(key) == project(&victim));
        if matches!(out, Out::Key) && is_key || matches!(out, Out::Project) && is_project {
            shut_for_other.insert(key.to_owned());
        }
        let model_only =
            matches!(out, Out::KeyAndModel) && is_key || matches!(out, Out::ProjectAndModel) && is_project;
        if model_only || shut_for_other.contains(key) {
            shut_for_model.insert(key.to_owned());
        }
    }
    let all: HashSet<_> = (1..=5).map(|number| format!("k{number}")).collect();
    // A cooldown of two seconds may be over before the last of these requests.
    let late = if matches!(family, Family::Bare429 | Family::SpendRate) {
        shut_for_model.clone()
    } else {
        HashSet::new()
    };
    let open: HashSet<_> = all.difference(&shut_for_model).cloned().collect();
    assert_eq!(&of_model - &late, open, "{family:?} on {victim}: keys used for the same model");
    let open: HashSet<_> = all.difference(&shut_for_other).cloned().collect();
    assert_eq!(of_other, open, "{family:?} on {victim}: keys used for another model");
    cooldown_is_kept(&sim, &victim, family);
}

/// No call to a bucket inside the shortest of all cooldowns.
fn cooldown_is_kept(sim: &Sim, victim: &str, family: Family) {
    if !matches!(family, Family::Bare429 | Family::SpendRate) {
        return;
    }
    let log = calls(sim);
    let refused = log.iter().find(|request| request.status == 429).expect("the refusal");
    let again = log.iter().find(|request| {
        request.seq > refused.seq && request.project == refused.project && request.model == refused.model
    });
    if let Some(again) = again {
        assert!(again.mono_us - refused.mono_us >= 2_000_000, "{victim} was called inside its cooldown");
    }
}

/// Every project of the account is out, the others are not. The account is known to the coordinator only, whose decision
/// takes a moment.
async fn billing_account_is_out(family: Family) {
    let sim = Sim::start(world()).await;
    sim.rules(vec![Rule::family(family).project("p1").path("chat/completions")]);
    let gateway = Gateway::start(config(&sim)).await;
    let client = gateway.client();
    eventually("the billing account is out", Duration::from_secs(5), || async {
        let used = keys_used(&sim, &client, OTHER_MODEL).await;
        (used == ["k3", "k4"].map(str::to_owned).into()).then_some(())
    })
    .await;
    let refused = calls(&sim).iter().filter(|request| request.status == 429).count();
    assert_eq!(refused, 1, "one project's word holds for both");
}

/// Every key fails in the same way: the client sees the one error that says what is wrong, in its dialect, after a
/// bounded number of calls; and the next request costs no call where nothing can have changed.
async fn all_fail(family: Family) {
    let (_, seen) = meaning(family);
    let sim = Sim::start(world()).await;
    sim.rules(vec![Rule::family(family)]);
    // The prober would find dead keys before the clients do.
    let gateway = Gateway::start(config(&sim)).await;
    let client = gateway.client();
    let answer = chat(&client, MODEL).await;
    let error = envelope(&answer, true);
    let first = calls(&sim).len();
    let told = format!("{family:?}: {} after {first} calls: {}", answer.status, answer.text);
    let after: Option<u64> = answer.header("retry-after").parse().ok();
    match seen {
        Seen::Own(status) => {
            assert_eq!((answer.status, first), (status, 1), "{told}");
            own_error_is_kept(&sim, &client, family, &error).await;
        }
        Seen::NoKeyWorks => {
            assert_eq!(answer.status, 502, "{told}");
            assert!(first <= 5, "{told}");
            assert!(!error.to_string().contains("API key"), "the pool's keys are not the client's: {told}");
            assert!(after.is_none_or(|seconds| seconds > 120), "{told}");
            if family != Family::MultipleCredentials {
                assert_eq!(answer.header("x-should-retry"), "false", "{told}");
            }
        }
        Seen::Exhausted(from, to) => {
            assert_eq!(answer.status, 429, "{told}");
            assert!(first <= 4, "one call for each project: {told}");
            let after = after.expect("a refusal says when to come back");
            assert!((from..=to).contains(&after), "come back in {after} s: {told}");
            let millis: u64 = answer.header("retry-after-ms").parse().expect("in milliseconds too");
            assert_eq!(millis.div_ceil(1_000), after, "{told}");
            let hopeless = if millis > 120_000 { "false" } else { "" };
            assert_eq!(answer.header("x-should-retry"), hopeless, "{told}");
        }
        Seen::Retried(status) => {
            assert_eq!((answer.status, first), (status, 3), "{told}");
        }
        Seen::WayOut(status) => {
            // A project's second key is not asked to accuse it twice, but it may be tried.
            assert_eq!(answer.status, status, "{told}");
            assert!((3..=4).contains(&first), "{told}");
            assert!(after.is_some_and(|seconds| seconds <= 5), "come back in {after:?}: {told}");
        }
    }
    // Nothing can have changed within this moment but the mood of a model.
    let certain = !matches!(seen, Seen::Own(_) | Seen::Retried(_)) && family != Family::MultipleCredentials;
    for is_openai in [true, false] {
        let began = Instant::now();
        let again = if is_openai { chat(&client, MODEL).await } else { native(&client, MODEL).await };
        let took = began.elapsed();
        envelope(&again, is_openai);
        assert!(again.status >= 400, "{told}");
        if certain {
            assert_eq!(
                calls(&sim).len(),
                first,
                "{told}, then another call for {} {}",
                again.status,
                again.text
            );
            assert!(took < QUICK, "{told}: an answer without a call took {took:?}");
        }
    }
    for secret in sim.secrets() {
        assert!(!answer.text.contains(&secret), "{told}");
    }
    if matches!(seen, Seen::Retried(_) | Seen::WayOut(_)) {
        every_key_recovers(&sim, &client, family).await;
    }
}

/// No key was blamed: when the trouble is over, all of them serve again.
async fn every_key_recovers(sim: &Sim, client: &Client, family: Family) {
    sim.rules(Vec::new());
    let mut used = HashSet::new();
    eventually(&format!("every key serves again after {family:?}"), Duration::from_secs(20), || {
        used.extend(calls(sim).into_iter().filter(|request| request.status == 200).filter_map(|r| r.key_id));
        let all = used.len() == 5;
        let answer = client.chat(MODEL, false);
        async move {
            answer.await.expect("an answer");
            all.then_some(())
        }
    })
    .await;
}

/// Message, status and details are the upstream's, taken out of the array; on both surfaces.
async fn own_error_is_kept(sim: &Sim, client: &Client, family: Family, error: &Value) {
    let upstream = Client::new(sim.url());
    let secret = sim.secrets().remove(0);
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "Say something."}]});
    let compat =
        upstream.request(reqwest::Method::POST, "/v1beta/openai/chat/completions").bearer_auth(&secret);
    let compat = read(compat.body(body.to_string())).await.expect("an answer");
    let direct = generate(&upstream, MODEL).header("x-goog-api-key", secret);
    let direct = read(direct).await.expect("an answer");
    let relayed = native(client, MODEL).await;
    let relayed = envelope(&relayed, false);
    // HTML or nothing has no fields: there the gateway has to find words of its own.
    for (direct, relayed) in [(&compat.json()[0]["error"], error), (&direct.json()["error"], &relayed)] {
        for field in ["message", "status", "details"].into_iter().filter(|_| direct.is_object()) {
            assert_eq!(relayed[field], direct[field], "{family:?}: {field}");
        }
    }
}

fn families(select: impl Fn(Seen) -> bool) -> Vec<Family> {
    Family::ALL.iter().copied().filter(|family| select(meaning(*family).1)).collect()
}

async fn table(families: Vec<Family>) {
    assert!(!families.is_empty());
    let each = |family| async move {
        one_failure(family).await;
        all_fail(family).await;
    };
    stream::iter(families).for_each_concurrent(AT_ONCE, each).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_callers_faults_are_the_callers() {
    table(families(|seen| matches!(seen, Seen::Own(_)))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_do_not_work_are_left_out() {
    table(families(|seen| seen == Seen::NoKeyWorks)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quotas_belong_to_projects_and_models() {
    table(families(|seen| matches!(seen, Seen::Exhausted(..)))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_models_trouble_touches_no_key() {
    table(families(|seen| matches!(seen, Seen::Retried(_)))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_of_several_projects_rest_the_way_out() {
    table(families(|seen| matches!(seen, Seen::WayOut(_)))).await;
}

//! Official clients × calls × what the upstream does: every call that could succeed does, and every failure raises the
//! exception that the client's users catch.

use std::time::Duration;

use keyfleet_simulator::{Action, Family, KeyState, Rule, World};
use keyfleet_tests::{Call, Gateway, Report, Retries, Sdk, SdkClient, Sim, eventually};

/// More projects than any client makes calls, so that each call can lose one to a quota.
const PROJECTS: usize = 24;
/// How often a call is made until it meets its fault.
const TRIES: usize = 3;

/// What the upstream does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Upstream {
    /// Answers.
    Ok,
    /// Refuses the first request of every call: this project's minute is used up.
    QuotaThenOk,
    /// Refuses the first request of every call: this project's day is used up.
    DayThenOk,
    /// Is overloaded for the first request of every call.
    OverloadThenOk,
    /// Is overloaded, all the time and for every model.
    Storm,
    /// Knows no more than one key in four.
    DeadKeys,
    /// Has shut the key off that the first request of every call comes with.
    DeadKeyThenOk,
    /// Knows none of the keys.
    AllDead,
    /// Sends an error event after the first chunk of a stream.
    StreamError,
    /// The same as an array, which breaks the OpenAI clients and which the Google ones overlook.
    StreamErrorWrapped,
    /// Sends an error that is no event after the first chunk of a stream.
    StreamRawTail,
    /// Breaks off within the first event of every stream.
    StreamTruncatedAtOnce,
    /// Breaks off after some events of a stream.
    StreamTruncated,
    /// Breaks off in the midst of every answer in one piece.
    Truncated,
    /// Breaks off in the midst of one answer.
    TruncatedOnce,
}

impl Upstream {
    /// Whether every call meets the fault. Those that fail again and again open the model's breaker, and then some do
    /// not come so far.
    fn is_met_by_each(self) -> bool {
        !matches!(self, Self::Storm | Self::StreamTruncatedAtOnce | Self::StreamTruncated | Self::Truncated)
    }

    /// Whether what it says is what the client's user has to read.
    fn speaks_of_itself(self) -> bool {
        matches!(self, Self::Storm | Self::StreamError | Self::StreamErrorWrapped | Self::StreamRawTail)
    }
}

/// What the client's user sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Whole,
    /// An exception of this class, with this status if the class has one.
    Raised(&'static str, Option<u64>),
}

/// The table.
fn expected(sdk: Sdk, call: Call, upstream: Upstream) -> Seen {
    match (upstream, call.streams()) {
        (Upstream::Storm, _) => server_error(sdk, 503),
        // The answer to an upload is lost, and making the file twice would not bring it back. This client sends the
        // last piece again by itself, which the upstream refuses.
        (Upstream::Truncated, false) if call == Call::Files && sdk == Sdk::GenAiPython => {
            Seen::Raised("ClientError", Some(400))
        }
        // The gateway's own failure to serve, not the model's.
        (Upstream::AllDead, _) | (Upstream::StreamTruncatedAtOnce, true) | (Upstream::Truncated, false) => {
            server_error(sdk, 502)
        }
        // What the upstream said of itself.
        (Upstream::StreamError | Upstream::StreamErrorWrapped | Upstream::StreamRawTail, true) => {
            stream_error(sdk, 503)
        }
        // Google streams a tool call as one event, so that nothing comes before the break.
        (Upstream::StreamTruncated, true) if call == Call::StreamTools && !sdk.is_openai() => {
            server_error(sdk, 502)
        }
        (Upstream::StreamTruncated, true) => stream_error(sdk, 502),
        // Everything else could succeed, and does.
        _ => Seen::Whole,
    }
}

/// What an error before the first byte of an answer becomes.
fn server_error(sdk: Sdk, status: u64) -> Seen {
    let class = match sdk {
        Sdk::OpenAiPython | Sdk::OpenAiJs => "InternalServerError",
        Sdk::GenAiPython => "ServerError",
        Sdk::GenAiJs => "ApiError",
    };
    Seen::Raised(class, Some(status))
}

/// What an error after the first chunk of a stream becomes.
fn stream_error(sdk: Sdk, status: u64) -> Seen {
    match sdk {
        Sdk::OpenAiPython | Sdk::OpenAiJs => Seen::Raised("APIError", None),
        Sdk::GenAiPython | Sdk::GenAiJs => server_error(sdk, status),
    }
}

fn world(upstream: Upstream) -> World {
    let mut world = World::pool(PROJECTS, 1);
    for (at, key) in world.keys.iter_mut().enumerate() {
        let dead = match upstream {
            Upstream::AllDead => true,
            Upstream::DeadKeys => at % 4 != 3,
            _ => false,
        };
        if dead {
            key.state = KeyState::Invalid;
        }
    }
    world
}

/// The fault that is in force during one call.
fn fault(call: Call, upstream: Upstream) -> Option<Rule> {
    let family = Family::Overloaded;
    match upstream {
        Upstream::Ok | Upstream::DeadKeys | Upstream::AllDead => None,
        Upstream::QuotaThenOk => Some(Rule::family(Family::PerMinute429).times(1)),
        Upstream::DayThenOk => Some(Rule::family(Family::PerDay429).times(1)),
        Upstream::OverloadThenOk => Some(Rule::family(family).times(1)),
        Upstream::DeadKeyThenOk => Some(Rule::family(Family::ApiKeyInvalid).times(1)),
        Upstream::Storm => Some(Rule::family(family)),
        Upstream::StreamError | Upstream::StreamErrorWrapped => {
            let wrapped = upstream == Upstream::StreamErrorWrapped;
            call.streams().then(|| Rule::new(Action::ErrorEvent { after_chunks: 1, family, wrapped }))
        }
        Upstream::StreamRawTail => {
            call.streams().then(|| Rule::new(Action::RawTail { after_chunks: 1, family }))
        }
        Upstream::StreamTruncatedAtOnce => {
            call.streams().then(|| Rule::new(Action::TruncateAt { bytes: 60 }))
        }
        Upstream::StreamTruncated => call.streams().then(|| Rule::new(Action::TruncateAt { bytes: 380 })),
        Upstream::Truncated => (!call.streams()).then(|| Rule::new(Action::TruncateAt { bytes: 30 })),
        Upstream::TruncatedOnce => (!call.streams() && call != Call::Files)
            .then(|| Rule::new(Action::TruncateAt { bytes: 30 }).times(1)),
    }
}

fn seen(report: &Report) -> Seen {
    if report.ok() {
        return Seen::Whole;
    }
    let known = [
        "APIConnectionError",
        "APIError",
        "ApiError",
        "ClientError",
        "InternalServerError",
        "RateLimitError",
        "RemoteProtocolError",
        "ServerError",
        "TypeError",
    ];
    let class = known.into_iter().find(|class| *class == report.error_class());
    Seen::Raised(class.unwrap_or("another"), report.status())
}

/// Makes every call of one client against `url`, and says which cells of the table do not hold.
async fn column(sdk: Sdk, upstream: Upstream, sim: &Sim, url: &str) -> Vec<String> {
    let mut client = SdkClient::start(sdk, url, "placeholder", Retries::Off);
    let mut wrong = Vec::new();
    for call in sdk.calls() {
        let (report, met) = cell(&mut client, call, upstream, sim).await;
        let expected = expected(sdk, call, upstream);
        let told = !upstream.speaks_of_itself() || report.ok() || report.message().contains("high demand");
        if seen(&report) != expected || !met || !told {
            let met = if met { "" } else { " without its fault" };
            wrong.push(format!(
                "{sdk:?} {call:?} {upstream:?}: expected {expected:?}, got{met} {}",
                report.raw()
            ));
        }
    }
    wrong
}

/// One call under its fault, and whether it met it. A fault that the gateway's prober has met proves nothing, so the
/// call is made again.
async fn cell(client: &mut SdkClient, call: Call, upstream: Upstream, sim: &Sim) -> (Report, bool) {
    let fault = fault(call, upstream);
    let by_prober = |path: &str| path.ends_with("models?pageSize=1");
    let mut tries = 0;
    loop {
        let before = sim.log().len();
        sim.rules(fault.clone().into_iter().collect());
        let report = client.call(call).await;
        let met = sim
            .log()
            .iter()
            .skip(before)
            .any(|request| request.outcome.starts_with("rule:") && !by_prober(&request.path_and_query));
        tries += 1;
        if met || fault.is_none() || !upstream.is_met_by_each() || tries == TRIES {
            return (report, met || fault.is_none() || !upstream.is_met_by_each());
        }
    }
}

/// Every client with a gateway and an upstream of its own, so that no call meets what another one left behind.
async fn row(upstream: Upstream) {
    let one = async |sdk| {
        let sim = Sim::start(world(upstream)).await;
        let gateway = Gateway::start(sim.config()).await;
        let wrong = column(sdk, upstream, &sim, &gateway.url()).await;
        let unfit: Vec<_> = wrong.into_iter().chain(credentials(&sim)).collect();
        if unfit.is_empty() { None } else { Some((unfit, gateway.logs())) }
    };
    let mut wrong = Vec::new();
    for sdk in Sdk::ALL {
        if let Some((cells, logs)) = one(sdk).await {
            eprintln!("--- log of the gateway of {sdk:?}\n{logs}");
            wrong.extend(cells);
        }
    }
    assert!(wrong.is_empty(), "{} cells do not hold:\n{}", wrong.len(), wrong.join("\n"));
}

/// Exactly one credential per upstream request, never in the URL, and never the client's.
fn credentials(sim: &Sim) -> Vec<String> {
    let mut wrong = Vec::new();
    for request in sim.log() {
        let step_of_upload = request.path_and_query.contains("upload_id=");
        if request.credentials.len() != 1 && !step_of_upload || request.path_and_query.contains("key=") {
            wrong.push(format!("{} carried {:?}", request.path_and_query, request.credentials));
        }
        if request
            .headers
            .iter()
            .any(|(name, value)| name.starts_with("x-stainless") || value.contains("placeholder"))
        {
            wrong.push(format!("{} carried {:?}", request.path_and_query, request.headers));
        }
    }
    wrong
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_succeeds() {
    row(Upstream::Ok).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_project_without_quota_is_never_seen() {
    row(Upstream::QuotaThenOk).await;
    row(Upstream::DayThenOk).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_overload_is_never_seen() {
    row(Upstream::OverloadThenOk).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_raises_the_server_error() {
    row(Upstream::Storm).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_keys_are_never_seen() {
    row(Upstream::DeadKeys).await;
    row(Upstream::DeadKeyThenOk).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_pool_raises_the_server_error() {
    row(Upstream::AllDead).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_in_a_stream_is_raised() {
    row(Upstream::StreamError).await;
    row(Upstream::StreamErrorWrapped).await;
    row(Upstream::StreamRawTail).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_answer_is_never_taken_for_a_whole_one() {
    row(Upstream::StreamTruncatedAtOnce).await;
    row(Upstream::StreamTruncated).await;
    row(Upstream::Truncated).await;
    row(Upstream::TruncatedOnce).await;
}

/// The clients as their users have them, with their own retries on: a storm that ends is over for them too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_retry_come_through() {
    for sdk in Sdk::ALL {
        let sim = Sim::start(World::pool(PROJECTS, 1)).await;
        let gateway = Gateway::start(sim.config()).await;
        let mut client = SdkClient::start(sdk, &gateway.url(), "placeholder", Retries::Default);
        // More than the gateway retries by itself, fewer than open its breaker.
        sim.rules(vec![Rule::family(Family::Overloaded).times(4)]);
        let report = client.call(Call::Plain).await;
        assert!(report.ok(), "{sdk:?}: {}", report.raw());
    }
}

/// The clients without a gateway between: what they make of the simulator is the measure of all the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_simulator_alone_satisfies_the_clients() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let secret = sim.secrets().remove(0);
    for sdk in Sdk::ALL {
        let base = if sdk.is_openai() { format!("{}/v1beta/openai/", sim.url()) } else { sim.url() };
        let mut client = SdkClient::start_at(sdk, &base, &secret, Retries::Off);
        for call in sdk.calls() {
            let report = client.call(call).await;
            assert!(report.ok(), "{sdk:?} {call:?}: {}", report.raw());
        }
    }
}

/// After a storm every client is served again within the breaker's time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_storm_the_same_client_is_served() {
    let sim = Sim::start(World::pool(3, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let mut client = SdkClient::start(Sdk::OpenAiPython, &gateway.url(), "placeholder", Retries::Off);
    sim.rules(vec![Rule::family(Family::Overloaded)]);
    for _ in 0..5 {
        assert!(!client.call(Call::Plain).await.ok());
    }
    sim.rules(Vec::new());
    let http = gateway.client();
    eventually("service is back", Duration::from_secs(5), || {
        let answer = http.chat("gemini-2.5-flash", false);
        async move { answer.await.is_ok_and(|answer| answer.status == 200).then_some(()) }
    })
    .await;
    let report = client.call(Call::Plain).await;
    assert!(report.ok(), "{}", report.raw());
}

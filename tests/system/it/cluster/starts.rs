//! Processes that start, or go on, while NATS or Redis is away: they answer, say what is wrong, and can be ended.

use std::time::{Duration, Instant};

use keyfleet_simulator::World;
use keyfleet_tests::{Client, Cluster, ClusterOptions, Part, eventually};
use serde_json::json;

use super::{MODEL, SOON, limited};

/// Far below what waiting for a server would take.
const PROMPTLY: Duration = Duration::from_secs(8);

fn client(cluster: &Cluster, part: Part) -> Client {
    if let Part::Gateway(at) = part { cluster.gateway(at) } else { cluster.coordinator(0) }
}

/// One figure of `/metrics`.
async fn figure(cluster: &Cluster, part: Part, name: &str) -> Option<f64> {
    let text = client(cluster, part).get("/metrics").await.ok()?.text;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

fn store_up(part: Part) -> &'static str {
    if matches!(part, Part::Gateway(_)) { "keyfleet_store_up" } else { "keyfleet_coordinator_store_up" }
}

fn bus_up(part: Part) -> &'static str {
    if matches!(part, Part::Gateway(_)) { "keyfleet_bus_up" } else { "keyfleet_coordinator_bus_up" }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_redis_is_there_wait_in_the_background() {
    let options = ClusterOptions { coordinators: 1, ..ClusterOptions::new(json!({})).gateways(1) };
    let mut cluster = Cluster::start(World::pool(2, 1), options).await;
    for away in [Part::Redis, Part::Nats] {
        let programs = [Part::Gateway(0), Part::Coordinator(0)];
        for part in programs {
            cluster.kill(part);
        }
        cluster.kill(away);
        for part in programs {
            cluster.revive(part);
            // `/health` answers at once.
            cluster.up(part).await;
            let name = if away == Part::Redis { "Redis" } else { "NATS" };
            let answer = client(&cluster, part).get("/health/ready").await.expect("an answer");
            // Without NATS, what Redis holds is enough for a gateway that starts.
            if part != Part::Gateway(0) || away == Part::Redis {
                let why = (answer.status, answer.text);
                assert!(why.0 == 503, "{part:?} without {name}: {why:?}");
            }
            eventually("the log says why", SOON, || async {
                cluster.log(part).contains(&format!("{name} does not answer: ")).then_some(())
            })
            .await;
            let began = Instant::now();
            let status = cluster.terminate(part).await;
            assert!(status.success(), "{part:?} without {name}: {status}");
            assert!(began.elapsed() < PROMPTLY, "{part:?} without {name}: {:?}", began.elapsed());
            cluster.revive(part);
        }
        cluster.restart(away).await;
        cluster.until_ready(0).await;
        cluster.leader().await;
        eventually("clients are answered", SOON, || async {
            (cluster.gateway(0).chat(MODEL, false).await.ok()?.status == 200).then_some(())
        })
        .await;
    }
}

/// Each thing that can be away has a figure and a line that says what follows, in both programs; and both say when it is
/// back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn and_outages_are_told_in_figures_and_logs() {
    let options = ClusterOptions { coordinators: 1, ..ClusterOptions::new(limited(60)).gateways(1) };
    let mut cluster = Cluster::start(World::pool(2, 1), options).await;
    let programs = [Part::Gateway(0), Part::Coordinator(0)];
    for (away, name, up) in [
        (Part::Redis, "Redis", store_up as fn(Part) -> &'static str),
        (Part::Nats, "NATS", bus_up as fn(Part) -> &'static str),
    ] {
        for part in programs {
            eventually("all is well", SOON, || async {
                (figure(&cluster, part, up(part)).await? > 0.5).then_some(())
            })
            .await;
        }
        cluster.kill(away);
        for part in programs {
            eventually("it is told", SOON, || async {
                let figure = figure(&cluster, part, up(part)).await?;
                let said = cluster.log(part).contains(&format!("{name} does not answer: "));
                (figure < 0.5 && said).then_some(())
            })
            .await;
        }
        cluster.restart(away).await;
        for part in programs {
            eventually("and that it is over", SOON, || async {
                let figure = figure(&cluster, part, up(part)).await?;
                let said = cluster.log(part).contains(&format!("{name} answers again"));
                (figure > 0.5 && said).then_some(())
            })
            .await;
        }
    }
    cluster.kill(Part::Coordinator(0));
    eventually("the gateway tells that the coordinator is away", SOON, || async {
        let _ = cluster.gateway(0).chat(MODEL, false).await;
        let unanswered = figure(&cluster, Part::Gateway(0), "keyfleet_lease_requests_unanswered").await?;
        let age = figure(&cluster, Part::Gateway(0), "keyfleet_state_age_seconds").await?;
        let said = cluster.log(Part::Gateway(0)).contains("the coordinator does not answer");
        (unanswered > 0.5 && age > 1.0 && said).then_some(())
    })
    .await;
    cluster.restart(Part::Coordinator(0)).await;
    eventually("and that it is back", SOON, || async {
        let _ = cluster.gateway(0).chat(MODEL, false).await;
        cluster.log(Part::Gateway(0)).contains("the coordinator answers again").then_some(())
    })
    .await;
}

//! In Kubernetes: the chart is installed, and its pods come and go while clients are served.

mod autoscaling;
mod helm;
mod rollout;

use std::time::Duration;

use keyfleet_tests::{ApiServer, Helm, PodSpec};
use serde_json::Value;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/keyfleet");
const RELEASE: &str = "keyfleet";
const GATEWAY: &str = "keyfleet-gateway";
const MODEL: &str = "gemini-2.5-flash";
/// Whose answers take long.
const LONG: &str = "gemini-2.5-pro";
/// In these scenarios everything that a pod's specification says takes a fifth of its time.
const FASTER: u32 = 5;
/// Until a change of the endpoints has reached every node: in the time of these scenarios 5 seconds, which is long.
const LAG: Duration = Duration::from_secs(1);

/// A release of the chart, in a cluster that only `helm` works on.
struct Release {
    server: ApiServer,
    helm: Helm,
}

impl Release {
    async fn install(more: &[&str]) -> Self {
        let server = ApiServer::start().await;
        let helm = Helm::on(&server);
        helm.run(&[&["install", RELEASE, CHART, "--wait", "--timeout", "60s"][..], more].concat()).await.ok();
        Self { server, helm }
    }

    /// An object of the gateways.
    fn object(&self, resource: &str) -> Value {
        self.server.object(resource, GATEWAY).expect("an object of the release")
    }

    /// How the gateways live.
    fn pod(&self) -> PodSpec {
        PodSpec::of(&self.object("deployments"))
    }

    /// How long a gateway that is told to end goes on with what it has begun.
    fn drain(&self) -> Duration {
        let map = self.server.object("configmaps", RELEASE).expect("a configuration");
        let text = map["data"]["config.yaml"].as_str().expect("a file");
        let mut values = text.lines().filter_map(|line| line.trim().strip_prefix("drain_timeout_secs: "));
        Duration::from_secs(values.next().and_then(|value| value.parse().ok()).expect("a number of seconds"))
    }
}

//! In Kubernetes: the chart is installed, and its pods come and go while clients are served.

mod helm;

use keyfleet_tests::{ApiServer, Helm};
use serde_json::Value;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/keyfleet");
const RELEASE: &str = "keyfleet";
const GATEWAY: &str = "keyfleet-gateway";
/// A release of the chart, in a cluster that only `helm` works on.
struct Release {
    server: ApiServer,
    helm: Helm,
}

impl Release {
    async fn install(more: &[&str]) -> Self {
        let server = ApiServer::start().await;
        let helm = Helm::on(&server);
        helm.run(&[&["install", RELEASE, CHART, "--wait", "--timeout", "20s"][..], more].concat()).await.ok();
        Self { server, helm }
    }

    /// An object of the gateways.
    fn object(&self, resource: &str) -> Value {
        self.server.object(resource, GATEWAY).expect("an object of the release")
    }
}

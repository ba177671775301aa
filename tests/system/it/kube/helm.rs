//! The real `helm` installs, changes, tests and removes a release of the chart.

use keyfleet_simulator::World;
use keyfleet_tests::{ApiServer, Gateway, Helm, Sim};
use serde_json::{Value, json};

use super::{CHART, GATEWAY, RELEASE, Release};

fn replicas(release: &Release) -> Value {
    release.object("deployments")["spec"]["replicas"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_only_tried_changes_nothing() {
    let server = ApiServer::start().await;
    let said = Helm::on(&server).run(&["install", RELEASE, CHART, "--dry-run=server"]).await.ok();
    assert!(said.contains("kind: Deployment"), "{said}");
    let left = server.everything();
    assert!(left.is_empty(), "{left:?}");
}

/// With every kind of object that the chart knows, among them those of operators.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_example_is_installed_and_leaves_nothing_behind() {
    let server = ApiServer::start().await;
    let helm = Helm::on(&server);
    let examples = std::fs::read_dir(format!("{CHART}/examples")).expect("the examples of the chart");
    let mut tried = 0;
    for example in examples {
        let values = example.expect("an example").path().join("values.yaml").display().to_string();
        helm.run(&["install", RELEASE, CHART, "--values", &values]).await.ok();
        assert!(server.object("deployments", GATEWAY).is_some(), "{values}");
        helm.run(&["upgrade", RELEASE, CHART, "--values", &values, "--set", "logLevel=debug"]).await.ok();
        helm.run(&["uninstall", RELEASE, "--wait"]).await.ok();
        let left = server.everything();
        assert!(left.is_empty(), "{values}: {left:?}");
        tried += 1;
    }
    assert!(tried > 0, "no examples");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_lives_its_whole_life() {
    let release = Release::install(&[]).await;
    let Release { server, helm } = &release;
    let before = release.object("deployments");
    let limit = "gateway.resources.limits.memory=2Gi";
    let more = ["--set", "gateway.replicas=4", "--set", limit, "--set", "logLevel=debug", "--wait"];
    helm.run(&[&["upgrade", RELEASE, CHART][..], &more].concat()).await.ok();
    let after = release.object("deployments");
    assert_eq!(after["spec"]["replicas"], 4);
    let container = &after["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["resources"]["limits"]["memory"], "2Gi");
    let level: Vec<_> = container["env"].as_array().expect("an environment").iter().collect();
    assert!(level.contains(&&json!({"name": "RUST_LOG", "value": "debug"})), "{level:?}");
    let history = helm.run(&["history", RELEASE]).await.ok();
    assert!(history.contains("superseded") && history.contains("deployed"), "{history}");

    let refused =
        helm.run(&["upgrade", RELEASE, CHART, "--set", "nameOverride=other,fullnameOverride=keyfleet"]).await;
    assert!(!refused.well && refused.complaints.contains("immutable"), "{refused:?}");
    helm.run(&["rollback", RELEASE, "1", "--wait"]).await.ok();
    assert_eq!(replicas(&release), before["spec"]["replicas"]);
    assert_eq!(release.object("deployments")["spec"]["template"], before["spec"]["template"]);
    helm.run(&["uninstall", RELEASE, "--wait"]).await.ok();
    let left = server.everything();
    assert!(left.is_empty(), "{left:?}");
}

/// The pod of the test is a process, which asks what stands in for the Services.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_test_passes_when_clients_are_served() {
    let release = Release::install(&[]).await;
    let nobody = release.helm.run(&["test", RELEASE]).await;
    assert!(!nobody.well, "nobody is there yet: {nobody:?}");

    let sim = Sim::start(World::pool(1, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    for service in [GATEWAY, "keyfleet-gateway-ops"] {
        release.server.stand_in(service, gateway.url().trim_start_matches("http://"));
    }
    let model = ["upgrade", RELEASE, CHART, "--set", "smoke.model=gemini-2.5-pro"];
    release.helm.run(&model).await.ok();
    let tested = release.helm.run(&["test", RELEASE, "--logs"]).await;
    assert!(tested.well && tested.text.contains("Succeeded"), "{tested:?}");
    let mut asked = sim.log().into_iter().filter_map(|request| request.model);
    assert!(asked.any(|model| model == "gemini-2.5-pro"), "it was not asked");
}

//! Which requests caused a message: what strangers may say of it, and what it must never cost.

use async_nats::HeaderMap;
use keyfleet_core::id::{ProjectId, Resource};
use keyfleet_core::message::{MOST_TRACES, Owned, Record, Report};
use keyfleet_fabric::bus::GatewayBus as _;

use crate::server::Server;
use crate::world::{connect, lead, raw, report, told_report, traces};

#[tokio::test]
async fn of_what_strangers_send_only_traces_are_heard_and_not_too_many() {
    let server = Server::start();
    let mut leader = connect(&server.url()).await.leader();
    lead(&mut leader).await;
    let mut headers = HeaderMap::new();
    headers.append("traceparent", "client text");
    for trace in traces(2 * MOST_TRACES as u64) {
        headers.append("traceparent", trace.to_string());
    }
    let body = r#"{"v":1,"body":{"replica":"a","seq":1,"records":[]}}"#;
    let context = raw(&server).await;
    context.publish_with_headers("rl.v1.ev.0", headers, body.into()).await.unwrap().await.unwrap();
    let (heard, _) = told_report(&mut leader).await;
    let known = traces(MOST_TRACES as u64 - 1);
    assert_eq!(heard, Report { records: Vec::new(), traces: known, ..report("a", 1) });
}

#[tokio::test]
async fn a_report_that_fills_a_message_goes_without() {
    let server = Server::start();
    let nats = connect(&server.url()).await;
    let (gateway, mut leader) = (nats.gateway(), nats.leader());
    lead(&mut leader).await;
    let most = raw(&server).await.client().max_payload();
    let of_length = |resource: usize| {
        let (resource, project) = (Resource::new("x".repeat(resource)), ProjectId::new("p"));
        let records = vec![Record::Owned(Owned { resource, project, ttl_ms: 1 })];
        Report { records, traces: traces(MOST_TRACES as u64), ..report("a", 1) }
    };
    // Beside the resource, its report takes less than 300 bytes and its name for the server less than 100.
    let large = of_length(most - 400);
    gateway.report(&large).await.unwrap();
    assert_eq!(told_report(&mut leader).await.0, Report { traces: Vec::new(), ..large });
}

//! What a cluster of servers adds.

use keyfleet_fabric::bus::Told;
use keyfleet_fabric::bus::nats::NatsOptions;

use crate::server::Server;
use crate::world::{ASK, connect_with, insist, lead_again, raw, report, told, told_report};

#[tokio::test]
async fn a_cluster_of_three_keeps_three_copies_and_survives_one() {
    let mut servers = Server::cluster(3);
    let options =
        NatsOptions { ask_timeout: ASK, ..NatsOptions::new(servers.iter().map(Server::url).collect()) };
    let nats = connect_with(options).await;
    let (mut leader, gateway) = (nats.leader(), nats.gateway());
    let stream = lead_again(&mut leader, "", 0).await.stream;
    insist(&gateway, 1).await;
    told_report(&mut leader).await;
    let context = raw(&servers[0]).await;
    let info = context.get_stream("RL_EV_0").await.unwrap().cached_info().clone();
    assert_eq!(info.config.num_replicas, 3);
    assert_eq!(nats.health().stream_differs, None);
    let keeper = info.cluster.unwrap().leader.unwrap();
    servers.iter_mut().find(|server| server.name() == keeper).unwrap().kill();
    insist(&gateway, 2).await;
    loop {
        match told(&mut leader).await {
            Told::Report { report: heard, position } => {
                assert_eq!((heard, position), (report("a", 2), 2));
                break;
            }
            Told::Reconnected(position) => assert_eq!(position.stream, stream),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_cluster_of_two_keeps_one_copy() {
    let servers = Server::cluster(2);
    let nats = connect_with(NatsOptions::new(servers.iter().map(Server::url).collect())).await;
    lead_again(&mut nats.leader(), "", 0).await;
    let info = raw(&servers[0]).await.get_stream("RL_EV_0").await.unwrap().cached_info().clone();
    assert_eq!(info.config.num_replicas, 1);
}

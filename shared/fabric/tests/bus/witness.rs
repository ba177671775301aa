//! What every witness promises.

use keyfleet_core::id::ReplicaId;
use keyfleet_core::trust::TermId;
use keyfleet_fabric::bus::witness::{LocalWitness, Witness};

use crate::server::Server;
use crate::world::{connect, raw};

fn term(epoch: u64, holder: &str) -> TermId {
    TermId { epoch, holder: ReplicaId::new(holder) }
}

/// Both write to the same place.
async fn the_last_term_is_known_and_none_is_begun_twice(one: &dyn Witness, other: &dyn Witness) {
    assert_eq!(one.begin(&term(3, "a")).await, Ok(None));
    assert_eq!(other.begin(&term(4, "b/1")).await, Ok(Some(term(3, "a"))));
    for late in [term(4, "a"), term(2, "a")] {
        assert_eq!(one.begin(&late).await, Ok(Some(term(4, "b/1"))), "{late}");
    }
    assert_eq!(
        other.begin(&term(9, "b/1")).await,
        Ok(Some(term(4, "b/1"))),
        "what came too late is not written"
    );
}

#[tokio::test]
async fn local() {
    let witness = LocalWitness::default();
    the_last_term_is_known_and_none_is_begun_twice(&witness, &witness).await;
}

#[tokio::test]
async fn nats() {
    let server = Server::start();
    let (one, other) = (connect(&server.url()).await.witness(), connect(&server.url()).await.witness());
    the_last_term_is_known_and_none_is_begun_twice(&one, &other).await;
}

/// Of those that begin at a time, each sees the one before it: no two are told of the same.
#[tokio::test]
async fn nats_tells_rivals_of_each_other() {
    let server = Server::start();
    let (one, other) = (connect(&server.url()).await.witness(), connect(&server.url()).await.witness());
    for epoch in (1..40).step_by(2) {
        let (a, b) = (term(epoch, "a"), term(epoch + 1, "b"));
        let (of_a, of_b) = tokio::join!(one.begin(&a), other.begin(&b));
        let (of_a, of_b) = (of_a.unwrap(), of_b.unwrap());
        assert!(of_a == Some(b.clone()) || of_b == Some(a.clone()), "{of_a:?} {of_b:?}");
    }
}

/// The stream holds one message, and is used as it is where it was made before.
#[tokio::test]
async fn nats_keeps_one_message() {
    let server = Server::start();
    for epoch in 1..4 {
        connect(&server.url()).await.witness().begin(&term(epoch, "a")).await.unwrap();
    }
    let context = raw(&server).await;
    let mut stream = context.get_stream("RL_TERM_0").await.unwrap();
    assert_eq!(stream.info().await.unwrap().state.messages, 1);
    context.delete_stream("RL_TERM_0").await.unwrap();
    let witness = connect(&server.url()).await.witness();
    assert_eq!(witness.begin(&term(9, "a")).await, Ok(None), "nothing is known any more");
}

//! The stream of reports: created where it is missing, and never altered.

use std::time::Duration;

use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, RetentionPolicy, StorageType};
use async_nats::jetstream::{self, ErrorCode};
use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::link::ROUND_TRIP;
use super::replies::Lack;
use super::{Inner, Link, StreamLimits};
use crate::bus::{Position, Unreachable};

/// On how many servers of a cluster reports are kept, if it has so many.
const COPIES: usize = 3;
/// Room for the one message of the stream of terms, many times over: an account may ask for a limit.
const TERMS_BYTES: i64 = 64 * 1024;
/// For how long servers of a cluster may take to find each other, before those that are there are all.
const GATHER: Duration = Duration::from_secs(10);

/// Where the stream stands. Its name alone does not tell it from one that was made anew, so that the time of its
/// making is part of what identifies it.
pub(super) fn position(info: &Info) -> Position {
    Position {
        stream: format!("{}@{}", info.config.name, info.created.unix_timestamp_nanos()),
        before: info.state.first_sequence.saturating_sub(1),
        last: info.state.last_sequence,
    }
}

/// `None`: there is no such stream.
pub(super) async fn look(link: &Link, name: &str) -> Result<Option<Info>, Unreachable> {
    match api(link, &format!("STREAM.INFO.{name}"), Bytes::new()).await? {
        Ok(info) => Ok(Some(info)),
        Err(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
        Err(error) => Err(refused(&error)),
    }
}

/// The stream that is there, or else a new one.
pub(super) async fn ensure(inner: &Inner) -> Result<Info, Unreachable> {
    let name = &inner.subjects.stream;
    let wanted = wanted(inner);
    let info = match look(&inner.bulk, name).await? {
        Some(info) => info,
        None => match create(&inner.bulk, &wanted).await? {
            Ok(info) => info,
            Err(error) => with_fewer(inner, &wanted, error).await?,
        },
    };
    if !info.config.subjects.contains(&inner.subjects.event) {
        let event = &inner.subjects.event;
        return Err(Unreachable::Refused(format!("the stream {name} does not take the subject {event}")));
    }
    let differs = differences(&info.config, &wanted);
    let mut known = inner.differs.lock();
    if differs.is_some() && *known != differs {
        let differs = differs.as_deref().unwrap_or_default();
        tracing::warn!(
            stream = name,
            differs,
            "the stream is used as it is, though it would be created otherwise"
        );
    }
    *known = differs;
    drop(known);
    Ok(info)
}

/// Makes the stream of terms, if there is none.
pub(super) async fn ensure_terms(inner: &Inner) -> Result<(), Unreachable> {
    let name = &inner.subjects.terms;
    if look(&inner.bulk, name).await?.is_some() {
        return Ok(());
    }
    let wanted = Config {
        name: name.clone(),
        subjects: vec![inner.subjects.term.clone()],
        max_age: Duration::ZERO,
        max_bytes: TERMS_BYTES,
        max_messages_per_subject: 1,
        ..wanted(inner)
    };
    match create(&inner.bulk, &wanted).await? {
        Ok(_) => Ok(()),
        Err(error) => with_fewer(inner, &wanted, error).await.map(drop),
    }
}

/// A cluster of less than three keeps one copy. How many servers there are is not known when a cluster starts, and
/// the stream is not altered later: so they get time to gather.
async fn with_fewer(inner: &Inner, wanted: &Config, error: jetstream::Error) -> Result<Info, Unreachable> {
    let few =
        matches!(error.error_code(), ErrorCode::CLUSTER_NO_PEERS | ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED);
    let gathered = inner.bulk.health().borrow().since.elapsed() > GATHER;
    if !few || !gathered || inner.limits.replicas.is_some() {
        return Err(refused(&error));
    }
    create(&inner.bulk, &Config { num_replicas: 1, ..wanted.clone() }).await?.map_err(|error| refused(&error))
}

fn refused(error: &jetstream::Error) -> Unreachable {
    Unreachable::Refused(error.to_string())
}

async fn create(link: &Link, wanted: &Config) -> Result<Result<Info, jetstream::Error>, Unreachable> {
    let payload = serde_json::to_vec(wanted).map_err(|error| Unreachable::Refused(error.to_string()))?;
    match api(link, &format!("STREAM.CREATE.{}", wanted.name), payload.into()).await? {
        Ok(info) => {
            tracing::info!(stream = wanted.name, replicas = wanted.num_replicas, "created a stream");
            Ok(Ok(info))
        }
        // Somebody else was faster, with other limits.
        Err(error) if error.error_code() == ErrorCode::STREAM_NAME_EXIST => {
            Ok(look(link, &wanted.name).await?.ok_or(error))
        }
        Err(error) => Ok(Err(error)),
    }
}

async fn api<T: DeserializeOwned>(
    link: &Link,
    what: &str,
    payload: Bytes,
) -> Result<Result<T, jetstream::Error>, Unreachable> {
    link.check()?;
    let answer = match link.exchange(&format!("$JS.API.{what}"), None, payload, 2 * ROUND_TRIP).await {
        Ok(answer) => answer,
        Err(Lack::Nobody) => {
            return Err(Unreachable::Refused("JetStream is not enabled for this account".to_owned()));
        }
        Err(lack) => return Err(lack.into()),
    };
    match serde_json::from_slice(&answer.payload) {
        Ok(Response::Ok(body)) => Ok(Ok(body)),
        Ok(Response::Err { error }) => Ok(Err(error)),
        Err(error) => Err(Unreachable::Refused(format!("no answer of JetStream: {error}"))),
    }
}

fn wanted(inner: &Inner) -> Config {
    let StreamLimits { max_age, max_bytes, replicas } = inner.limits;
    let clustered = inner.bulk.client().try_server_info().is_some_and(|info| info.cluster.is_some());
    Config {
        name: inner.subjects.stream.clone(),
        subjects: vec![inner.subjects.event.clone()],
        storage: StorageType::File,
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        max_age,
        max_bytes,
        max_messages: -1,
        max_messages_per_subject: -1,
        max_consumers: -1,
        num_replicas: replicas.unwrap_or(if clustered { COPIES } else { 1 }),
        allow_direct: true,
        ..Config::default()
    }
}

/// Only what matters for losing reports.
fn differences(have: &Config, want: &Config) -> Option<String> {
    let mut differs = Vec::new();
    let mut compare = |what: &str, have: String, want: String| {
        if have != want {
            differs.push(format!("{what} is {have}, not {want}"));
        }
    };
    compare("storage", format!("{:?}", have.storage), format!("{:?}", want.storage));
    compare("retention", format!("{:?}", have.retention), format!("{:?}", want.retention));
    compare("discard", format!("{:?}", have.discard), format!("{:?}", want.discard));
    compare("max_age", format!("{:?}", have.max_age), format!("{:?}", want.max_age));
    compare("max_bytes", have.max_bytes.to_string(), want.max_bytes.to_string());
    compare("replicas", have.num_replicas.to_string(), want.num_replicas.to_string());
    (!differs.is_empty()).then(|| differs.join("; "))
}

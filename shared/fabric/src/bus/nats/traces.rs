//! Which requests caused a message: one header for each. Other releases send none, and strangers anything.

use async_nats::{Client, HeaderMap, Message};
use bytes::Bytes;
use keyfleet_core::message::MOST_TRACES;
use keyfleet_core::trace::{HEADER, TraceParent};

/// More than all headers of a message take.
const ROOM: usize = 1_024;

/// What tells of these requests. A message that fills what the server takes goes without.
pub(super) fn headers(traces: &[TraceParent], payload: &Bytes, client: &Client) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if payload.len() + ROOM <= client.max_payload() {
        for trace in traces.iter().take(MOST_TRACES) {
            headers.append(HEADER, trace.to_string());
        }
    }
    headers
}

/// What a message tells of them.
pub(super) fn of(message: &Message) -> Vec<TraceParent> {
    let Some(headers) = &message.headers else { return Vec::new() };
    headers.get_all(HEADER).take(MOST_TRACES).filter_map(|value| TraceParent::parse(value.as_str())).collect()
}

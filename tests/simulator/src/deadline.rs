//! `X-Server-Timeout`: how many seconds the caller gives the whole answer.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;

use crate::errors;
use crate::faults::{self, Tongue};
use crate::reply::{Reply, Step};

/// An answer that begins too late is a 504; a stream that goes on too long ends with the same error as an event.
pub(crate) fn keep(mut reply: Reply, headers: &HeaderMap, tongue: Tongue) -> Reply {
    let Some(limit) = limit(headers) else { return reply };
    if reply.delay >= limit {
        return Reply { delay: limit, ..Reply::failure(&errors::deadline(), tongue.dialect) };
    }
    let mut left = limit.saturating_sub(reply.delay);
    for at in 0..reply.steps.len() {
        let Some(Step::Wait(pause)) = reply.steps.get_mut(at) else { continue };
        if *pause < left {
            left = left.saturating_sub(*pause);
            continue;
        }
        *pause = left;
        reply.steps.truncate(at + 1);
        if reply.sized {
            faults::break_off(&mut reply);
        } else {
            let event = faults::event(&errors::deadline(), tongue, false);
            reply.steps.push_back(Step::Data(Bytes::from(event)));
        }
        break;
    }
    reply
}

fn limit(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get("x-server-timeout")?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

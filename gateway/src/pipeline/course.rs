//! What one request has done so far, and what it may do next. Nothing here is I/O.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use http::StatusCode;
use keyfleet_core::id::Model;
use keyfleet_core::outcome::{Cause, Scope};
use keyfleet_core::retry::{Next, RetryPlan};
use keyfleet_core::select::{Blame, NoKey, Want};
use keyfleet_core::time::{Mono, Now};
use keyfleet_service::clock;

use super::reply::mark;
use crate::Worker;
use crate::answer::Failed;
use crate::call::{self, Call, Kind, Payload};
use crate::error::{Fault, Party, Retry};
use crate::live::Live;
use crate::pool::{Again, Permit};
use crate::redact::redact;
use crate::trail::Trail;

/// The coordinator's word on a block follows this replica's own finding, and its block ends as much later. Whoever waits
/// for that end waits so much longer.
const CONFIRMATION: Duration = Duration::from_millis(50);

/// When a client may send again what could not be sent a second time from here.
const AGAIN: Duration = Duration::from_secs(1);

/// What one request has done so far.
pub(super) struct Course {
    pub(super) model: Model,
    pub(super) lane: Model,
    /// The part of the model's quota that is counted apart.
    quota: &'static str,
    tried: Vec<u32>,
    pub(super) again: Option<Again>,
    /// Requests with the same value stay on one project.
    session: Option<u64>,
    waited: bool,
    /// How long it may still wait for leases.
    pub(super) patience: Duration,
    /// The last upstream error, for when nothing is left to try.
    failed: Option<Box<Failed>>,
    /// Models to fall back to, the next one last.
    fallbacks: Vec<Model>,
}

impl Course {
    pub(super) fn new(call: &Call, live: &Live) -> Self {
        let fallbacks = live.config.fallbacks.get(call.model.as_str()).cloned().unwrap_or_default();
        Self {
            model: call.model.clone(),
            lane: call::lane(&call.model, call.quota),
            quota: call.quota,
            tried: Vec::new(),
            again: None,
            session: call.session,
            waited: false,
            patience: call.patience,
            failed: None,
            fallbacks: fallbacks.into_iter().rev().collect(),
        }
    }

    /// What the next attempt needs.
    pub(super) fn want(&self, call: &Call, owner: Option<u32>) -> Want<'_> {
        let bytes = match &call.payload {
            // What it refers to has tokens as well.
            Payload::Held(body, _) if call.resources.is_empty() => u64::try_from(body.len()).ok(),
            _ => None,
        };
        let stores = call.kind == Kind::Create && call.model.as_str().is_empty();
        Want { tried: &self.tried, project: owner, session: self.session, stores, bytes }
    }

    /// What to do without a key: `Some` is how long to wait before looking again.
    pub(super) fn refused(
        &mut self,
        refusal: NoKey,
        max_wait: Duration,
        plan: &RetryPlan,
    ) -> Option<Duration> {
        if matches!(refusal.blame, Blame::Model | Blame::Quota | Blame::Large(_))
            && let Some(model) = self.fallbacks.pop()
        {
            self.lane = call::lane(&model, self.quota);
            self.model = model;
            self.tried.clear();
            self.again = None;
            return Some(Duration::ZERO);
        }
        let wait = refusal.retry_at.since(clock::mono()) + CONFIRMATION;
        let returns = refusal.retry_at != Mono::FOREVER && refusal.retry_at < plan.deadline();
        if self.waited || !returns || wait > max_wait {
            return None;
        }
        self.waited = true;
        // What comes back may be a key that was refused before.
        self.tried.clear();
        Some(wait)
    }

    /// What follows from a failure.
    pub(super) fn next(
        &mut self,
        plan: &mut RetryPlan,
        call: &Call,
        permit: &Permit,
        failed: Box<Failed>,
        now: Now,
    ) -> Next {
        let may_have_been_done = matches!(
            failed.outcome.cause,
            Cause::Reset | Cause::Timeout | Cause::Deadline | Cause::Truncated | Cause::EmptyAnswer
        );
        let repeatable = call.can_repeat() && (call.is_idempotent() || !may_have_been_done);
        let next = plan.next(&failed.outcome, now.mono, fastrand::u32(..));
        if failed.was_never_sent() {
            // What an earlier attempt found out says more. The plan bounds how often this happens.
            self.failed.get_or_insert(failed);
            return if repeatable { next } else { Next::GiveUp };
        }
        self.again = match (next, self.again) {
            (Next::SameKey(_), _) => Some(Again::First(permit.seat)),
            (Next::AnotherKeyAfter(_), _) => Some(Again::Last(permit.seat)),
            // A key that could not even try does not use the retry up.
            (Next::AnotherKey, Some(Again::Last(seat))) if seat != permit.seat => Some(Again::Last(seat)),
            _ => None,
        };
        if matches!(next, Next::AnotherKey | Next::AnotherKeyAfter(_)) {
            self.tried.push(permit.key_number());
        }
        self.failed = Some(failed);
        if repeatable { next } else { Next::GiveUp }
    }

    /// The error that says best what is wrong.
    pub(super) fn give_up(
        self,
        worker: &Worker,
        call: &Call,
        live: &Arc<Live>,
        refusal: Option<NoKey>,
        mut trail: Trail,
    ) -> Response {
        let now = clock::mono();
        // Clients write what they like where the name of a model belongs.
        let model = redact(self.model.as_str(), live);
        let own = refusal.map(|refusal| (refusal.blame, Fault::no_key(refusal, &model, now)));
        let words = &worker.app.last_words;
        let fault = match (self.failed, own) {
            (None, Some(_)) if !worker.app.pool.serves(live, &self.lane) => Fault::new(
                StatusCode::NOT_FOUND,
                format!(
                    "No group of keys serves the model {model}. Its name must match one of groups[].models."
                ),
            ),
            (None, Some((Blame::Model, own))) => {
                Fault { retry: own.retry, ..words.of(&self.lane).unwrap_or(own) }
            }
            (None, Some((_, own))) => own,
            (Some(failed), own) => {
                let upstream =
                    Fault::upstream(failed.status, &failed.body, live).by(Party::of(&failed.outcome));
                if failed.outcome.scope == Scope::Model {
                    words.keep(&self.lane, &upstream);
                }
                match own {
                    // Keys that do not work are not the caller's business: it is not its 400, 401 or 403.
                    Some((_, own)) if is_about_keys(&failed) || failed.was_never_sent() => own,
                    // Its Retry-After would not help.
                    Some((Blame::Large(_), own)) => own,
                    // Nor is the place that we call from: its 400 would be ours.
                    Some((_, own))
                        if failed.outcome.scope == Scope::Egress && failed.status.as_u16() < 429 =>
                    {
                        Fault { message: upstream.message, ..own }
                    }
                    Some((_, own)) => Fault { retry: own.retry, ..upstream },
                    // Nor are they when nothing else can be tried, because the body has gone by.
                    None if is_about_keys(&failed) && !call.can_repeat() => Fault::new(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "The key that this upload was sent with does not work. It is out of use now: send it again.",
                    )
                    .with_retry(Retry::After(AGAIN))
                    .by(Party::Keys),
                    None => upstream,
                }
            }
            (None, None) => {
                Fault::new(StatusCode::INTERNAL_SERVER_ERROR, "The request ended without an attempt.")
            }
        };
        trail.refused(&fault);
        let mut response = fault.respond(call.surface);
        mark(response.headers_mut(), &trail);
        response
    }
}

/// An error by which the upstream refused our credentials.
fn is_about_keys(failed: &Failed) -> bool {
    matches!(failed.outcome.scope, Scope::Key | Scope::KeyModel | Scope::Project)
        && failed.status.as_u16() < 429
}

//! The page: one request from call to reply.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use keyfleet_core::id::{Model, ProjectId, Resource};
use keyfleet_core::ledger::read_owner;
use keyfleet_core::message::{Ask, Owned, Record};
use keyfleet_core::outcome::{Cause, Scope};
use keyfleet_core::retry::{Next, RetryPlan};
use keyfleet_core::select::{Blame, NoKey, Want};
use keyfleet_core::state::Table;
use keyfleet_core::time::{Mono, Now};
use keyfleet_service::clock;

use crate::answer::{self, Answer, Expected, Failed};
use crate::call::{Call, Kind, Payload};
use crate::error::Fault;
use crate::live::Live;
use crate::pool::{self, Again, Permit, Refusal};
use crate::relay::Relay;
use crate::request::refuse;
use crate::trail::Trail;
use crate::{Worker, skim, upload, upstream};

/// Uploads and files live for two days upstream; other resources may be asked for much longer.
const FILE_TTL: Duration = Duration::from_hours(48);
const OTHER_TTL: Duration = Duration::from_hours(336);

/// The coordinator's word on a block follows this replica's own finding, and its block ends as much later. Whoever waits
/// for that end waits so much longer.
const CONFIRMATION: Duration = Duration::from_millis(50);

/// Of the resources that a request refers to, so many are looked up.
const MOST_LOOKED_UP: usize = 4;

/// What one request has done so far.
struct Course {
    model: Model,
    lane: Model,
    tried: Vec<u32>,
    again: Option<Again>,
    /// Requests with the same value stay on one project.
    session: Option<u64>,
    waited: bool,
    /// It has waited for a lease.
    leased: bool,
    /// The last upstream error, for when nothing is left to try.
    failed: Option<Box<Failed>>,
    /// Models to fall back to, the next one last.
    fallbacks: Vec<Model>,
}

/// Carries a call out and answers it.
pub(crate) async fn answer(
    worker: &Worker,
    mut call: Call,
    live: std::sync::Arc<Live>,
    mut trail: Trail,
) -> Response {
    let pool = &worker.app.pool;
    let server = &live.config.server;
    let mut plan =
        RetryPlan::new(live.config.failure.internal_retries, clock::mono().plus(server.request_timeout));
    call.resources.extend(pool::named(&call.path));
    let mut course = Course::new(&call, &live);
    let owner = match pool.owners.of(&call.resources, clock::mono()) {
        None if !call.resources.is_empty() => look_up(worker, &call.resources).await,
        known => known,
    };
    let owner = owner.and_then(|project| live.project_numbers.get(&project).copied());
    loop {
        let want = course.want(&call, owner);
        let seen = pool.quota.answers();
        let patient = !course.leased;
        let acquired = pool.acquire(&live, &course.lane, &want, course.again, patient, clock::now());
        let mut permit = match acquired {
            Ok(permit) => permit,
            Err(Refusal::Cold) if patient => {
                course.leased = true;
                pool.quota.wait(seen, live.config.quota.lease_wait).await;
                continue;
            }
            Err(refusal) => match course.refused(refusal.no_key(clock::mono()), server.max_wait, &plan) {
                Some(wait) if worker.pause(wait).await => continue,
                Some(_) => return refuse(&Fault::shutting_down(), call.surface, trail),
                None => {
                    let refusal = refusal.no_key(clock::mono());
                    return course.give_up(worker, &call, &live, Some(refusal), trail);
                }
            },
        };
        trail.attempt(&permit);
        permit.callers_end = call.server_timeout().map(|time| clock::mono().plus(time));
        let mut failed = match attempt(worker, &permit, &mut call, &course.model, plan.deadline()).await {
            Ok(answer) => {
                let shown = shown(&call, &answer, &permit);
                note_owners(worker, call.kind == Kind::Create, shown).await;
                return relay(worker, &call, &course, answer, permit, trail);
            }
            Err(failed) => failed,
        };
        let now = clock::now();
        failed.outcome = permit.judge(failed.outcome, now.mono);
        permit.failed(&failed.outcome, &failed.body.stated_limits, now);
        trail.last_cause = Some(failed.outcome.cause);
        worker.app.metrics.attempt_failed(failed.outcome.cause);
        let next = course.next(&mut plan, &call, &permit, failed, now);
        drop(permit);
        match next {
            Next::GiveUp => return course.give_up(worker, &call, &live, None, trail),
            Next::AnotherKey => {}
            Next::SameKey(wait) | Next::AnotherKeyAfter(wait) => {
                if !worker.pause(wait).await {
                    return refuse(&Fault::shutting_down(), call.surface, trail);
                }
            }
        }
    }
}

/// Asks the store once for an owner that this replica has not heard of: the only question on a request's way.
async fn look_up(worker: &Worker, resources: &[Resource]) -> Option<ProjectId> {
    let app = &worker.app;
    for resource in resources.iter().take(MOST_LOOKED_UP) {
        app.metrics.looked_up();
        let found = app.fabric.store.get(Table::Owners, resource.as_str()).await;
        let found = found.inspect_err(|error| tracing::debug!(%error, "an owner cannot be looked up"));
        if let Some((project, ttl_ms)) = found.ok()?.and_then(|value| read_owner(&value, clock::utc())) {
            let owned = Owned { resource: resource.clone(), project: project.clone(), ttl_ms };
            app.pool.owners.insert(&owned, clock::mono());
            return Some(project);
        }
    }
    None
}

/// One upstream call, read as far as is needed to know whether it is an answer.
async fn attempt(
    worker: &Worker,
    permit: &Permit,
    call: &mut Call,
    model: &Model,
    deadline: Mono,
) -> Result<Answer, Box<Failed>> {
    let expected = Expected::of(call);
    let exchange = async {
        let sent = upstream::send(worker.number, permit, call, model, deadline).await;
        let reply = sent.map_err(Failed::without_answer)?;
        answer::read(reply, expected, deadline, permit.live.config.server.idle_timeout).await
    };
    tokio::select! {
        biased;
        answered = exchange => answered,
        () = worker.app.hard.cancelled() => Err(Failed::shutting_down()),
    }
}

impl Course {
    fn new(call: &Call, live: &Live) -> Self {
        let fallbacks = live.config.fallbacks.get(call.model.as_str()).cloned().unwrap_or_default();
        Self {
            model: call.model.clone(),
            lane: call.lane(),
            tried: Vec::new(),
            again: None,
            session: call.session,
            waited: false,
            leased: false,
            failed: None,
            fallbacks: fallbacks.into_iter().rev().collect(),
        }
    }

    /// What the next attempt needs.
    fn want(&self, call: &Call, owner: Option<u32>) -> Want<'_> {
        let bytes = match &call.payload {
            // What it refers to has tokens as well.
            Payload::Held(body, _) if call.resources.is_empty() => u64::try_from(body.len()).ok(),
            _ => None,
        };
        let stores = call.kind == Kind::Create && call.model.as_str().is_empty();
        Want { tried: &self.tried, project: owner, session: self.session, stores, bytes }
    }

    /// What to do without a key: `Some` is how long to wait before looking again.
    fn refused(&mut self, refusal: NoKey, max_wait: Duration, plan: &RetryPlan) -> Option<Duration> {
        if matches!(refusal.blame, Blame::Model | Blame::Quota | Blame::Large(_))
            && let Some(model) = self.fallbacks.pop()
        {
            self.lane = model.clone();
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
    fn next(
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
    fn give_up(
        self,
        worker: &Worker,
        call: &Call,
        live: &std::sync::Arc<Live>,
        refusal: Option<NoKey>,
        mut trail: Trail,
    ) -> Response {
        let now = clock::mono();
        let own = refusal.map(|refusal| (refusal.blame, Fault::no_key(refusal, self.model.as_str(), now)));
        let words = &worker.app.last_words;
        let fault = match (self.failed, own) {
            (None, Some(_)) if !worker.app.pool.serves(live, &self.lane) => Fault::new(
                StatusCode::NOT_FOUND,
                format!(
                    "No group of keys serves the model {}. Its name must match one of groups[].models.",
                    self.model
                ),
            ),
            (None, Some((Blame::Model, own))) => {
                Fault { retry: own.retry, ..words.of(&self.lane).unwrap_or(own) }
            }
            (None, Some((_, own))) => own,
            (Some(failed), own) => {
                let upstream = Fault::upstream(failed.status, &failed.body, live);
                if failed.outcome.scope == Scope::Model {
                    words.keep(&self.lane, &upstream);
                }
                match own {
                    // Keys that do not work are not the caller's business: it is not its 400, 401 or 403.
                    Some((_, own)) if is_about_keys(&failed) => own,
                    // Its Retry-After would not help.
                    Some((Blame::Large(_), own)) => own,
                    // Nor is the place that we call from: its 400 would be ours.
                    Some((_, own))
                        if failed.outcome.scope == Scope::Egress && failed.status.as_u16() < 429 =>
                    {
                        Fault { message: upstream.message, ..own }
                    }
                    Some((_, own)) => Fault { retry: own.retry, ..upstream },
                    None => upstream,
                }
            }
            (None, None) => {
                Fault::new(StatusCode::INTERNAL_SERVER_ERROR, "The request ended without an attempt.")
            }
        };
        trail.status = fault.status;
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

/// Passes the answer on. From here on nothing is retried: the attempt moves into the body.
fn relay(
    worker: &Worker,
    call: &Call,
    course: &Course,
    mut answer: Answer,
    mut permit: Permit,
    mut trail: Trail,
) -> Response {
    let ttfb = trail.elapsed();
    permit.succeeded(ttfb, clock::mono());
    trail.ttfb = Some(ttfb);
    trail.status = answer.status;
    let mut headers = std::mem::take(&mut answer.headers);
    tidy(&mut headers, &answer);
    upload::rewrite_url(&mut headers, call);
    mark(&mut headers, &trail);
    if course.model != call.model
        && let Ok(model) = HeaderValue::from_str(course.model.as_str())
    {
        headers.insert("x-keyfleet-model", model);
    }
    let status = answer.status;
    let idle = permit.live.config.server.idle_timeout;
    let body = Relay::new(answer, permit, trail, idle, &worker.app.hard);
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Removes what concerned the upstream's connection only.
fn tidy(headers: &mut HeaderMap, answer: &Answer) {
    const HOP_BY_HOP: [&str; 8] = [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "alt-svc",
    ];
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    headers.remove(http::header::SET_COOKIE);
    if answer.form != answer::Form::Bytes {
        // An error may have to be added.
        headers.remove(http::header::CONTENT_LENGTH);
    }
}

/// Says which request and which key this was.
pub(crate) fn mark(headers: &mut HeaderMap, trail: &Trail) {
    let mut insert = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    insert("x-request-id", &trail.id);
    if let Some(key) = &trail.key {
        insert("x-keyfleet-key", key.as_str());
    }
    headers.insert("x-keyfleet-attempts", HeaderValue::from(trail.attempts));
}

/// What an answer shows to belong to the permit's project: what was just made, and what the client is told of when it
/// asks for what it has, such as the output of a batch.
fn shown(call: &Call, answer: &Answer, permit: &Permit) -> Vec<Owned> {
    let creates = call.kind == Kind::Create;
    let lists = call.kind == Kind::Other && skim::names_a_collection(&call.path);
    if !creates && !lists {
        return Vec::new();
    }
    let found = skim::skim(&answer.begun);
    let text = |at: std::ops::Range<usize>| std::str::from_utf8(&answer.begun[at]).ok();
    let mut names: Vec<String> = Vec::new();
    if !call.path.contains("interactions") {
        // All of an interaction but its id may be the model's own words.
        names.extend(found.references.into_iter().filter_map(text).map(str::to_owned));
        names.extend(pool::operation(&answer.begun));
    }
    let kind =
        call.path.rsplit('/').next().filter(|kind| creates && matches!(*kind, "interactions" | "videos"));
    names.extend(kind.and_then(|kind| Some(format!("{kind}/{}", text(found.id?)?))));
    names.extend(upload::session(&answer.headers).map(|id| upload::resource(&id)));
    names.dedup();
    let owned = |name: String| {
        let is_file = name.starts_with("files/") || name.starts_with("uploads/");
        let ttl = if is_file { FILE_TTL } else { OTHER_TTL };
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        Owned { resource: Resource::new(name), project: permit.project().clone(), ttl_ms }
    };
    names.into_iter().map(owned).collect()
}

/// Remembers owners. What was made is written down by the coordinator before the client can refer to it; if nobody
/// answers, it is reported like everything else.
async fn note_owners(worker: &Worker, creates: bool, shown: Vec<Owned>) {
    let app = &worker.app;
    for owned in shown {
        let is_known = app.pool.owners.of(std::slice::from_ref(&owned.resource), clock::mono()).is_some();
        if !creates && is_known {
            continue;
        }
        app.pool.owners.insert(&owned, clock::mono());
        if !creates || app.fabric.bus.ask(Ask::Own(owned.clone())).await.is_err() {
            app.pool.reports.push(Record::Owned(owned));
        }
    }
}

impl Trail {
    fn attempt(&mut self, permit: &Permit) {
        self.attempts += 1;
        let key = permit.key();
        self.key = Some(key.id.clone());
        permit.live.config.groups[key.group as usize].name.as_str().clone_into(&mut self.group);
    }
}

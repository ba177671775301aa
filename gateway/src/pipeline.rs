//! The page: one request from call to reply.

mod course;
mod owned;
mod reply;

use axum::response::Response;
use keyfleet_core::id::Model;
use keyfleet_core::retry::{Next, RetryPlan};
use keyfleet_core::time::Mono;
use keyfleet_service::clock;

use self::course::Course;
pub(crate) use self::owned::owner;
pub(crate) use self::reply::mark;
use crate::answer::{self, Answer, Expected, Failed};
use crate::call::Call;
use crate::error::Fault;
use crate::live::Live;
use crate::pool::{self, Permit, Refusal};
use crate::request::refuse;
use crate::trail::Trail;
use crate::{Worker, upstream};

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
    let owner = owner(worker, &call.resources).await;
    let owner = owner.and_then(|project| live.project_numbers.get(&project).copied());
    loop {
        let want = course.want(&call, owner);
        let seen = pool.quota.answers();
        let patient = !course.patience.is_zero();
        let acquired = pool.acquire(&live, &course.lane, &want, course.again, patient, clock::now());
        let mut permit = match acquired {
            Ok(permit) => permit,
            Err(Refusal::Cold) if patient => {
                course.patience = pool.quota.wait(seen, course.patience).await;
                continue;
            }
            Err(refusal) => match course.refused(refusal.no_key(clock::mono()), server.max_wait, &plan) {
                Some(wait) if worker.pause(wait).await => continue,
                Some(_) => return refuse(&Fault::shutting_down(), call.surface, trail),
                None => {
                    trail.trace.no_key();
                    let refusal = refusal.no_key(clock::mono());
                    return course.give_up(worker, &call, &live, Some(refusal), trail);
                }
            },
        };
        permit.trace = trail.attempt(&permit, &course.model);
        permit.callers_end = call.server_timeout().map(|time| clock::mono().plus(time));
        let mut failed = match attempt(worker, &permit, &mut call, &course.model, plan.deadline()).await {
            Ok(answer) => {
                let shown = owned::shown(&call, &answer, &permit);
                owned::note_owners(worker, call.creates(), shown).await;
                return reply::relay(worker, &call, &course, answer, permit, trail);
            }
            Err(failed) => failed,
        };
        let now = clock::now();
        failed.outcome = permit.judge(failed.outcome, now.mono);
        permit.failed(&failed.outcome, &failed.body.stated_limits, now);
        trail.attempt_failed(&permit, &failed);
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

//! Alerts: what a leader observes goes into the machine of [`keyfleet_core::alert`], what that changes goes into the
//! leader's next commit, and what waits in the outbox after that commit goes to receivers.
//!
//! So a message is stored before it is sent, and a leader that was fenced off stores none. What is lost with a leader
//! is at most the knowledge that a message arrived: the next one sends it again, under the same id.

pub mod console;
pub(crate) mod heartbeat;
pub(crate) mod notice;
pub(crate) mod receivers;
pub(crate) mod sender;
pub(crate) mod stranded;
pub mod view;

use std::time::Duration;

use keyfleet_core::alert::Alerts;
use keyfleet_core::alert::delivery::Became;
use keyfleet_core::alert::seen::{Seen, needs_reports};
use keyfleet_core::id::{KeyId, Model};
use keyfleet_core::ledger::{Ledger, Step};
use keyfleet_core::quota::rules::covers;
use keyfleet_core::state::Image;
use keyfleet_core::time::{Mono, Now};
use keyfleet_service::clock;
use keyfleet_service::config::{self, Config, Wire};
use tokio::sync::watch;

use self::notice::Notice;
use self::receivers::{Clients, deliver};
use self::sender::{Done, Sender};
use self::stranded::Left;
use crate::status::{Post, Pulse};

/// How often rules are looked at; with many keys less often.
const EVERY: Duration = Duration::from_secs(1);
const EVERY_OF_MANY: Duration = Duration::from_secs(5);
const MANY: usize = 2_000;
/// A new leader has heard every gateway that is at work after this time.
const SETTLED: Duration = Duration::from_mins(1);
/// For so long it matters that a receiver refused a message.
const REFUSED_LATELY: Duration = Duration::from_hours(1);
/// For so long it is news that another leads.
const NEWS: Duration = Duration::from_mins(1);
/// The most alerts that the log names at a time.
const MOST_SAID: usize = 20;
/// What stands for the name of a receiver.
const HEARTBEAT: &str = "heartbeat_url";

/// What one term knows of alerts.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) machine: Alerts,
    sender: Sender,
    look_at: Mono,
    began: Mono,
    /// Another one led before, and did not hand over.
    changed: bool,
    /// So many outages are taken over, and perhaps not stored.
    caught_up: usize,
}

impl Watch {
    /// Goes on where the last leader stopped; `another` names its epoch if that was another process.
    pub(crate) fn resume(image: &Image, another: Option<u64>, now: Mono) -> Self {
        let (machine, unread) = Alerts::restore(image, clock::utc());
        if unread > 0 {
            tracing::warn!(
                entries = unread,
                "some of what is stored of alerts cannot be read and is left out"
            );
        }
        let changed = another.is_some_and(|epoch| !machine.was_handed_over(epoch));
        Self { machine, sender: Sender::default(), look_at: now, began: now, changed, caught_up: 0 }
    }

    /// Leaves what nobody is told to whoever tells that the store is away.
    pub(crate) fn leave(&self, left: &watch::Sender<Left>) {
        let silences = self.machine.silences().map(|(number, silence)| (number, silence.clone())).collect();
        left.send_modify(|left| left.silences = silences);
    }

    /// Takes over outages of the store that are over; what follows from it has to be stored.
    pub(crate) fn catch_up(&mut self, left: &watch::Sender<Left>) -> Option<Step> {
        let past: Vec<_> = left.borrow().past.iter().skip(self.caught_up).cloned().collect();
        if past.is_empty() {
            return None;
        }
        self.caught_up += past.len();
        for past in past {
            // A commit without an answer may have been written all the same.
            if !self.machine.history().any(|known| *known == past) {
                self.machine.remember(past);
            }
        }
        self.stored()
    }

    /// What was taken over is stored: no later term has to.
    pub(crate) fn caught_up(&mut self, left: &watch::Sender<Left>) {
        let stored = std::mem::take(&mut self.caught_up);
        if stored > 0 {
            left.send_modify(|left| drop(left.past.drain(..stored.min(left.past.len()))));
        }
    }

    /// When to call [`Self::look`].
    pub(crate) fn due(&self) -> Mono {
        self.look_at
    }

    /// Looks at everything, if it is time; what follows from it has to be stored.
    pub(crate) fn look(
        &mut self,
        ledger: &mut Ledger,
        post: &mut Post,
        config: &Config,
        bus_down: bool,
        now: Now,
    ) -> Option<Step> {
        if now.mono < self.look_at {
            return None;
        }
        let seen = self.observe(ledger, post, config, bus_down, now);
        self.look_at = now.mono.plus(if seen.keys > MANY { EVERY_OF_MANY } else { EVERY });
        let settled = now.mono.since(self.began) >= SETTLED;
        let known = |rule| settled || !needs_reports(rule);
        let readings = seen.readings(&config.alerts.thresholds);
        let before = self.firing();
        for receiver in self.machine.tick(readings, known, &config.alerts.policy, now.utc) {
            tracing::error!(
                receiver,
                "a message about alerts is given up after a day: its receiver takes none"
            );
            post.note(|pulse| counted(pulse, receiver, Became::GivenUp));
        }
        self.say(&before);
        self.show(post, config);
        self.stored()
    }

    fn observe(
        &self,
        ledger: &mut Ledger,
        post: &mut Post,
        config: &Config,
        bus_down: bool,
        now: Now,
    ) -> Seen {
        let stopped = self
            .machine
            .receivers()
            .filter_map(|(name, receiver)| Some((name.clone(), u32::MAX, receiver.stopped.clone()?)));
        // One that refused a message long ago may have taken others, had there been any; one that is gone needs none.
        let is_known = |name: &String| config.alerts.receivers.iter().any(|known| known.name == *name);
        let refused = self.machine.receivers().filter_map(|(name, receiver)| {
            let lately = receiver.refused_at.is_some_and(|at| now.utc.since(at) < REFUSED_LATELY);
            (lately && receiver.stopped.is_none() && is_known(name))
                .then(|| (name.clone(), receiver.refused, receiver.why.clone()))
        });
        let waiting = self
            .machine
            .outbox()
            .filter_map(|queued| Some((queued.receiver.clone(), queued.attempts, queued.why.clone()?)));
        let pool = |model: &Model| -> Vec<&KeyId> {
            let serve = config.groups.iter().filter(|group| covers(&group.models, model));
            serve.flat_map(|group| &group.keys).map(|key| &key.id).collect()
        };
        let blind = ledger.time(now) < ledger.blind_until();
        Seen {
            lost: post.lost(now.mono),
            leader_changed: self.changed && now.mono.since(self.began) < NEWS,
            bus_down,
            store_suspect: blind,
            config_rejected: post.config_rejected(),
            failing: stopped.chain(refused).chain(waiting).collect(),
            ..ledger.observe(|model| pool(model).into_iter(), self.machine.pools(), now)
        }
    }

    fn firing(&self) -> Vec<String> {
        let firing = self.machine.instances().filter(|(_, instance)| instance.fires());
        firing.map(|(fingerprint, _)| fingerprint.clone()).collect()
    }

    /// Whoever reads only the log sees alerts there: what happens to thousands at once as a few lines.
    fn say(&self, before: &[String]) {
        let was_firing = |fingerprint: &String| before.binary_search(fingerprint).is_ok();
        let mut changed = self
            .machine
            .instances()
            .filter(|(fingerprint, instance)| instance.fires() != was_firing(fingerprint));
        for (_, instance) in changed.by_ref().take(MOST_SAID) {
            let rule = instance.rule.as_str();
            if instance.fires() {
                tracing::warn!(rule, labels = ?instance.labels, "an alert fires: {}", instance.summary);
            } else {
                tracing::info!(rule, labels = ?instance.labels, "an alert is resolved: {}", instance.summary);
            }
        }
        let more = changed.count();
        if more > 0 {
            tracing::warn!(more, "more alerts fire or are resolved; `coordinator alerts list` shows them");
        }
    }

    fn show(&self, post: &Post, config: &Config) {
        let firing = self.machine.instances().filter(|(_, instance)| instance.fires()).count();
        let pending = self.machine.instances().filter(|(_, instance)| instance.pends()).count();
        post.note(|pulse| {
            pulse.alerts_firing = firing as u64;
            pulse.alerts_pending = pending as u64;
            pulse.alerts_waiting = self.machine.outbox().count() as u64;
            begin_counting(pulse, config);
        });
    }

    /// What has changed and is to be stored.
    pub(crate) fn stored(&mut self) -> Option<Step> {
        let entries = self.machine.entries();
        (!entries.is_empty()).then(|| Step { entries, ..Step::default() })
    }

    /// Hands over what waits. Call it only when everything is stored.
    pub(crate) fn send(&mut self, config: &Config) {
        let cluster = cluster(config);
        for (number, queued) in self.machine.due(clock::utc()) {
            let to = config.alerts.receivers.iter().find(|receiver| receiver.name == queued.receiver);
            if let Some(receiver) = to {
                self.sender.offer(number, receiver, || Notice::of(queued, cluster));
            }
        }
    }

    /// The next attempt that has ended.
    pub(crate) async fn ended(&mut self) -> Done {
        self.sender.next().await
    }

    /// Whether anything is under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.sender.is_busy()
    }

    /// Takes in what became of an attempt; what follows from it has to be stored.
    pub(crate) fn attempted(&mut self, done: Done, post: &Post) -> Option<Step> {
        let Done { number, receiver, attempt } = done;
        let became = self.machine.attempted(number, attempt.clone(), fastrand::u32(..), clock::utc())?;
        match became {
            Became::Delivered => tracing::info!(receiver, "an alert was delivered"),
            Became::Waits => {
                tracing::warn!(receiver, ?attempt, "an alert was not delivered: it is tried again");
            }
            Became::GivenUp => {
                let (rule, alerts) = self
                    .machine
                    .given_up()
                    .next_back()
                    .map_or(("", 0), |last| (last.rule.as_str(), last.alerts));
                tracing::error!(receiver, ?attempt, rule, alerts, "a message about alerts is given up");
            }
        }
        post.note(|pulse| counted(pulse, receiver, became));
        self.stored()
    }
}

/// A series that begins with its first failure has no rate: there is one of every receiver, whoever leads.
pub(crate) fn begin_counting(pulse: &mut Pulse, config: &Config) {
    for receiver in &config.alerts.receivers {
        for became in [Became::Delivered, Became::Waits, Became::GivenUp] {
            pulse.alert_deliveries.entry((receiver.name.clone(), result(became))).or_default();
        }
    }
}

/// Adds an attempt to the figures.
fn counted(pulse: &mut Pulse, receiver: String, became: Became) {
    *pulse.alert_deliveries.entry((receiver, result(became))).or_default() += 1;
}

/// The word in figures.
fn result(became: Became) -> &'static str {
    match became {
        Became::Delivered => "delivered",
        Became::Waits => "failed",
        Became::GivenUp => "given_up",
    }
}

/// What a deployment is called.
pub fn cluster(config: &Config) -> &str {
    config.redis.as_ref().map_or("keyfleet", |redis| redis.key_prefix.as_str())
}

/// Sends a message to every receiver, whatever it wants to hear, and a heartbeat; or to the one of that name. Says of
/// each what became of it.
pub async fn test(
    alerts: &config::Alerts,
    cluster: &str,
    only: Option<&str>,
) -> Vec<(String, Result<(), String>)> {
    let mut clients = Clients::default();
    let is_chosen = |name: &str| only.is_none_or(|only| only == name);
    let chosen = alerts.receivers.iter().filter(|receiver| is_chosen(&receiver.name));
    let now_ms = clock::utc().as_ms();
    let chosen: Vec<_> = chosen.map(|receiver| (receiver, clients.by(receiver.proxy_url.as_ref()))).collect();
    let attempts = chosen.into_iter().map(|(receiver, client)| async move {
        let told = match client {
            Ok(client) => try_out(&client, receiver, cluster, now_ms).await,
            Err(why) => Err(why),
        };
        (receiver.name.clone(), told)
    });
    let mut tried = futures_util::future::join_all(attempts).await;
    if let Some(url) = alerts.heartbeat_url.as_ref().filter(|_| is_chosen(HEARTBEAT)) {
        let told = match clients.by(alerts.proxy_url.as_ref()) {
            Ok(client) => {
                receivers::heartbeat(&client, url).await.map_err(|undelivered| undelivered.why().to_owned())
            }
            Err(why) => Err(why),
        };
        tried.push((HEARTBEAT.to_owned(), told));
    }
    tried
}

async fn try_out(
    client: &reqwest::Client,
    receiver: &config::Receiver,
    cluster: &str,
    now_ms: i64,
) -> Result<(), String> {
    let notice = Notice::test(format!("test-{:016x}", fastrand::u64(..)), cluster, now_ms);
    let mut told = deliver(client, receiver, &notice, now_ms).await;
    // Those that keep what they are told as an incident are also told that it is over.
    if told.is_ok() && matches!(receiver.wire, Wire::PagerDuty { .. } | Wire::Alertmanager { .. }) {
        told = deliver(client, receiver, &notice.over(now_ms), now_ms).await;
    }
    told.map_err(|undelivered| undelivered.why().to_owned())
}

//! A coordinator: claims the lead, and while it leads answers requests about leases, each batch once it is stored.

use std::collections::HashMap;

use keyfleet_core::id::ReplicaId;
use keyfleet_core::quota::LotId;
use keyfleet_core::quota::account::Moment;
use keyfleet_core::quota::grantor::Grantor;
use keyfleet_core::quota::message::{LeaseReply, LeaseRequest, LotReport};
use keyfleet_core::quota::used::TWILIGHT;
use keyfleet_core::time::{LedgerClock, LedgerTime, Mono, Utc};
use keyfleet_core::trust::{Found, Mark, TermId, Trust as Verdict};

use super::judge::next_midnight;
use super::probes::Listed;
use super::store::{Claim, Claimed, Trust, Write, Written};
use super::{Event, Flaw, Kind, Process, TERMS, World};

/// How often it claims.
const CLAIM_EVERY: u64 = 250;
/// Without a renewed claim for so long, by its own clock, it stops.
const STOP_AFTER: u64 = 700;

pub(crate) struct Coordinator {
    pub(crate) process: Process,
    term: Option<Term>,
    /// The highest epoch that it has heard of.
    epoch_seen: u64,
    /// When it asked for its last term.
    taken: u64,
    /// The last term of it that was judged.
    judged: Option<TermId>,
    /// The last commit that it got acknowledged or saw.
    known: Mark,
    /// Its store may lack something, and nothing is stored of that yet.
    suspect: bool,
}

struct Term {
    id: TermId,
    epoch: u64,
    /// The store that it leads on.
    identity: u64,
    grantor: Grantor,
    clock: LedgerClock,
    commit: u64,
    renewed: Mono,
    waiting: Vec<LeaseRequest>,
    pending: Option<Pending>,
    /// For the flaw that takes every request for the newest.
    newest: HashMap<ReplicaId, u64>,
}

struct Pending {
    write: Write,
    replies: Vec<(usize, u64, LeaseReply)>,
    listed: Vec<Listed>,
    sent: Mono,
}

impl Coordinator {
    pub(crate) fn new(rng: &mut fastrand::Rng) -> Self {
        let process = Process::new(rng);
        let known = Mark::default();
        Self { process, term: None, epoch_seen: 0, taken: 0, judged: None, known, suspect: false }
    }
}

/// One start of a coordinator.
fn holder(n: usize, start: u64) -> ReplicaId {
    ReplicaId::new(format!("co{n}-{start}"))
}

/// Which gateway, and which start of it, a request came from.
pub(crate) fn sender(request: &LeaseRequest) -> (usize, u64) {
    let (gateway, start) = request.boot.as_str().strip_prefix("gw").unwrap().split_once('-').unwrap();
    (gateway.parse().unwrap(), start.parse().unwrap())
}

impl World {
    pub(crate) fn lead(&mut self, n: usize) {
        self.after(CLAIM_EVERY, Event::Lead(n));
        let utc = self.utc(&self.coordinators[n].process);
        let coordinator = &mut self.coordinators[n];
        let clock = coordinator.process.clock(self.now);
        let stop_after = std::time::Duration::from_millis(STOP_AFTER);
        coordinator.term.take_if(|term| clock.since(term.renewed) > stop_after);
        let mut write = None;
        if let Some(term) = &mut coordinator.term {
            term.grantor.sweep(term.moment(clock, utc));
            if let Some(pending) = &mut term.pending
                && clock.since(pending.sent).as_millis() > 300
            {
                // No answer: written or not, the same again.
                pending.sent = clock;
                write = Some(pending.write.clone());
            }
        }
        let claim = Claim {
            epoch: coordinator.term.as_ref().map_or(0, |term| term.epoch),
            above: coordinator.epoch_seen,
            time: coordinator.term.as_ref().map(|term| term.clock.at(clock)),
            asked: clock.as_ms(),
        };
        let start = coordinator.process.start;
        self.transmit_to_store(|| Event::Claim(n, start, claim.clone()));
        if let Some(write) = write {
            self.transmit_to_store(|| Event::Write(n, start, write.clone()));
        }
    }

    pub(crate) fn claimed(&mut self, n: usize, start: u64, claimed: Claimed) {
        let flaw = self.setup.flaw;
        let now = self.now;
        let coordinator = &mut self.coordinators[n];
        if coordinator.process.start != start {
            return;
        }
        let clock = coordinator.process.clock(now);
        match claimed {
            Claimed::Theirs => coordinator.term = None,
            Claimed::Kept { asked, identity } => {
                coordinator.term.take_if(|term| term.identity != identity);
                if let Some(term) = &mut coordinator.term {
                    term.renewed = term.renewed.max(Mono::from_ms(asked));
                }
            }
            Claimed::Taken { asked, epoch, commit, author, time, written_at, identity, trust, accounts } => {
                let twice = match flaw {
                    Some(Flaw::EpochsAlike) => asked <= coordinator.taken,
                    _ => epoch <= coordinator.epoch_seen,
                };
                if twice {
                    return;
                }
                coordinator.taken = asked;
                let id = TermId { epoch, holder: holder(n, start) };
                let same_server = trust.is_some_and(|trust| trust.identity == identity);
                if !self.believes(n, &id, commit, author.as_ref(), same_server) {
                    return;
                }
                let coordinator = &mut self.coordinators[n];
                let mut grantor = Grantor::new(TERMS, accounts);
                let mut time = time;
                if flaw == Some(Flaw::WallClockAtTakeover) {
                    // Its calendar is some seconds fast.
                    time = time.plus(std::time::Duration::from_millis(now - written_at + 20_000));
                }
                if flaw != Some(Flaw::LossUnnoticed) {
                    grantor.stay_blind(trust.map(|trust| trust.blind_until).unwrap_or_default());
                    if coordinator.suspect {
                        grantor.quarantine(time);
                    }
                }
                self.verdict.takeovers += 1;
                coordinator.epoch_seen = epoch;
                coordinator.term = Some(Term {
                    id,
                    epoch,
                    identity,
                    grantor,
                    clock: LedgerClock::resume(time, clock),
                    commit,
                    renewed: Mono::from_ms(asked),
                    waiting: Vec::new(),
                    pending: None,
                    newest: HashMap::new(),
                });
                self.write_down(n, Vec::new(), Vec::new());
            }
        }
    }

    /// Writes the term down with the witness, and finds out whether the store has everything. False if the term cannot
    /// begin.
    fn believes(
        &mut self,
        n: usize,
        id: &TermId,
        commit: u64,
        author: Option<&TermId>,
        same_server: bool,
    ) -> bool {
        let flaw = self.setup.flaw;
        if flaw == Some(Flaw::EpochsAlike) {
            return true;
        }
        let unanswered = self.setup.faults.unanswered;
        let before = self.witness.clone();
        if before.as_ref().is_none_or(|before| before.epoch < id.epoch) {
            self.witness = Some(id.clone());
        }
        if unanswered > 0.0 && self.rng.f64() < unanswered {
            return false;
        }
        let coordinator = &mut self.coordinators[n];
        let mine = TermId { epoch: 0, ..id.clone() };
        let before = if flaw == Some(Flaw::NoWitness) { Some(mine) } else { before };
        let ours = before.clone().filter(|before| before.holder == id.holder);
        let judged = match flaw {
            Some(Flaw::NoWitness | Flaw::UnansweredVouch) => ours,
            _ => coordinator.judged.clone(),
        };
        let known = if flaw == Some(Flaw::CommitsUncompared) { Mark::default() } else { coordinator.known };
        let (before, judged) = (before.as_ref(), judged.as_ref());
        let found = Found { term: id, commit, author, same_server, before, judged, known };
        let verdict = found.trust();
        if verdict == Verdict::Whole {
            let epoch = author.map_or(0, |author| author.epoch);
            coordinator.known = Mark { epoch, commit };
        } else {
            self.verdict.doubts += 1;
            coordinator.suspect = true;
        }
        if let Verdict::EpochUsed(epoch) = verdict {
            coordinator.epoch_seen = coordinator.epoch_seen.max(epoch);
            return false;
        }
        coordinator.judged = Some(id.clone());
        true
    }

    /// Every coordinator that believes that it leads hears a request.
    pub(crate) fn lease(&mut self, request: &LeaseRequest) {
        for n in 0..self.coordinators.len() {
            let coordinator = &mut self.coordinators[n];
            if coordinator.process.paused_until > self.now {
                let until = coordinator.process.paused_until - self.now;
                if coordinator.term.is_some() {
                    self.after(until, Event::Lease(request.clone()));
                }
                continue;
            }
            coordinator.epoch_seen = coordinator.epoch_seen.max(request.epoch);
            coordinator.term.take_if(|term| term.epoch < request.epoch);
            let Some(term) = &mut coordinator.term else { continue };
            let mut request = request.clone();
            if self.setup.flaw == Some(Flaw::NoRequestNumbers) {
                let newest = term.newest.entry(request.boot.clone()).or_default();
                *newest = (*newest).max(request.number + 1);
                request.number = *newest - 1 + u64::from(request.number + 1 < *newest);
            }
            term.waiting.push(request);
            self.serve(n);
        }
    }

    fn serve(&mut self, n: usize) {
        let flaw = self.setup.flaw;
        let limits = self.limits.clone();
        let utc = self.utc(&self.coordinators[n].process);
        let utc = if flaw == Some(Flaw::OneDayOnly) { outside_of_twilight(utc) } else { utc };
        let coordinator = &mut self.coordinators[n];
        let clock = coordinator.process.clock(self.now);
        let Some(term) = &mut coordinator.term else { return };
        if term.pending.is_some() || term.waiting.is_empty() {
            return;
        }
        let requests = std::mem::take(&mut term.waiting);
        let moment = term.moment(clock, utc);
        match flaw {
            Some(Flaw::ExpiredFreed) => free_expired(term, moment),
            Some(Flaw::ChargedEarly) => charge_early(term, &requests, moment),
            _ => {}
        }
        let replies = term.grantor.serve(&requests, |bucket| limits.get(bucket).copied(), moment);
        if flaw.is_none() {
            assert!(moment.time.as_ms() <= self.now, "I6: ledger time is ahead of real time");
            for (bucket, used, open) in term.grantor.usage(moment) {
                // What was spent beyond an estimate is charged whether it fits or not, and around midnight what comes
                // back stays charged as well.
                let is_exact = !bucket.is_tokens() && !bucket.is_daily();
                assert!(!is_exact || used + open <= limits[&bucket], "I2: {bucket:?}: {used} + {open}");
            }
        }
        let replies: Vec<_> = requests
            .iter()
            .zip(replies)
            .map(|(request, reply)| (sender(request).0, sender(request).1, reply))
            .collect();
        let listed = requests.iter().map(|request| Listed::new(request, self.now)).collect();
        self.write_down(n, replies, listed);
    }

    /// Stores what changed; the replies are sent when that is done.
    fn write_down(&mut self, n: usize, replies: Vec<(usize, u64, LeaseReply)>, listed: Vec<Listed>) {
        let flaw = self.setup.flaw;
        let utc = self.utc(&self.coordinators[n].process);
        let coordinator = &mut self.coordinators[n];
        let clock = coordinator.process.clock(self.now);
        let start = coordinator.process.start;
        let Some(term) = &mut coordinator.term else { return };
        let moment = term.moment(clock, utc);
        let accounts = term.grantor.changes();
        let blind_until = match flaw {
            Some(Flaw::QuarantineForgotten) => LedgerTime::default(),
            _ => term.grantor.blind_until(),
        };
        let trust = Trust { identity: term.identity, blind_until };
        let write = Write {
            trust,
            epoch: term.epoch,
            leader: (n, start),
            author: term.id.clone(),
            follows: term.commit,
            time: moment.time,
            accounts,
        };
        if flaw == Some(Flaw::ReplyBeforePersist) {
            term.pending = Some(Pending { write: write.clone(), replies: Vec::new(), listed, sent: clock });
            self.spread(replies);
        } else {
            term.pending = Some(Pending { write: write.clone(), replies, listed, sent: clock });
        }
        self.transmit_to_store(|| Event::Write(n, start, write.clone()));
    }

    pub(crate) fn written(&mut self, n: usize, start: u64, written: Written) {
        let coordinator = &mut self.coordinators[n];
        if coordinator.process.start != start {
            return;
        }
        let Some(term) = &mut coordinator.term else { return };
        let Some(pending) = &term.pending else { return };
        let next = pending.write.follows + 1;
        let done = match written {
            Written::Done { commit } => commit == next,
            // It was the first copy of this very write that got through.
            Written::Refused { ours: true, commit } if commit == next => true,
            Written::Refused { ours: true, commit } if commit == pending.write.follows => false,
            Written::Refused { .. } => {
                coordinator.term = None;
                return;
            }
        };
        if done {
            term.commit = next;
            coordinator.known = Mark { epoch: term.epoch, commit: next };
            coordinator.suspect = false;
            let Some(pending) = term.pending.take() else { return };
            self.heard_of(&pending.listed);
            self.spread(pending.replies);
            self.serve(n);
        }
    }

    /// Every coordinator that believes that it leads hears how a probe went.
    pub(crate) fn judged(&mut self, boot: &ReplicaId, bucket: usize, lot: LotId) {
        let running = self.coordinators.iter_mut().filter(|one| one.process.paused_until <= self.now);
        for term in running.filter_map(|coordinator| coordinator.term.as_mut()) {
            term.grantor.judged(&self.buckets[bucket], boot, lot);
        }
    }

    fn spread(&mut self, replies: Vec<(usize, u64, LeaseReply)>) {
        for (gateway, start, reply) in replies {
            self.transmit(|| Event::Reply(gateway, start, reply.clone()));
        }
    }

    /// What it had heard of is gone with it.
    pub(crate) fn restart_coordinator(&mut self, n: usize) {
        let coordinator = &mut self.coordinators[n];
        coordinator.process.start += 1;
        coordinator.term = None;
        coordinator.epoch_seen = 0;
        coordinator.judged = None;
        coordinator.known = Mark::default();
        coordinator.suspect = false;
    }
}

impl Term {
    fn moment(&self, clock: Mono, utc: Utc) -> Moment {
        Moment { epoch: self.epoch, time: self.clock.at(clock), utc }
    }
}

/// Closes every lot just before it is written off, as if nothing more had been drawn from it.
fn free_expired(term: &mut Term, moment: Moment) {
    for (bucket, lot) in term.grantor.lots() {
        if lot.expires <= moment.time {
            let earlier = Moment { time: LedgerTime::from_ms(lot.expires.as_ms() - 1), ..moment };
            let report =
                LotReport { bucket, lot: lot.id, drawn: lot.drawn, given_back: lot.given_back, closed: true };
            let request = LeaseRequest {
                boot: lot.boot,
                number: 0,
                epoch: 0,
                reports: vec![report],
                wants: Vec::new(),
            };
            term.grantor.serve(&[request], |_| None, earlier);
        }
    }
}

/// Charges what the reports say as of the moment at which each lot was granted.
fn charge_early(term: &mut Term, requests: &[LeaseRequest], moment: Moment) {
    let granted: HashMap<_, _> = term
        .grantor
        .lots()
        .into_iter()
        .map(|(_, lot)| (lot.id, LedgerTime::from_ms(lot.expires.as_ms() - super::ms(TERMS.life))))
        .collect();
    for request in requests {
        for report in &request.reports {
            let Some(time) = granted.get(&report.lot) else { continue };
            let reports = vec![LotReport { closed: false, ..report.clone() }];
            let request = LeaseRequest { number: 0, reports, wants: Vec::new(), ..request.clone() };
            term.grantor.serve(&[request], |_| None, Moment { time: *time, ..moment });
        }
    }
}

/// The nearest moment that belongs to one day without doubt, on the same side of midnight.
fn outside_of_twilight(utc: Utc) -> Utc {
    let at = utc.as_ms();
    let twilight = super::signed(super::ms(TWILIGHT));
    let next = next_midnight(at);
    let last = next_midnight(at - twilight);
    if at >= next - twilight {
        Utc::from_ms(next - twilight - 1)
    } else if last <= at {
        Utc::from_ms(last + twilight)
    } else {
        utc
    }
}

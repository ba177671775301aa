//! Quota leases on a virtual clock: gateways, two coordinators, their store and the network between them, with
//! everything that can go wrong. The upstream's own count of a sliding window is the judge.
//!
//! Each run follows from its seed, which is printed when a run fails. `broken_variants_are_caught` proves that the
//! judge sees what it should: each of its worlds breaks one rule of the protocol, and must exceed a quota.

#![expect(clippy::unwrap_used, reason = "a simulation that breaks down is a test that fails")]
#![expect(clippy::disallowed_macros, reason = "the figures of the runs are for people")]
#![expect(clippy::disallowed_methods, reason = "runs are independent, and take every core")]
#![expect(clippy::cast_precision_loss, reason = "shares are shown, not compared")]

mod world;

use world::{Faults, Flaw, Setup, Shape, Verdict, World};

/// Simulated time of one run.
const RUN_SECS: u64 = 1_000;

/// Runs with seeds from `first` on, on every core.
fn runs(setup: Setup, first: u64, count: u64, secs: u64) -> Vec<(u64, Verdict)> {
    let cores = std::thread::available_parallelism().map_or(2, |n| n.get() as u64);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores)
            .map(|core| {
                let seeds = (first + core..first + count).step_by(usize::try_from(cores).unwrap());
                scope.spawn(move || seeds.map(|seed| (seed, run(setup, seed, secs))).collect::<Vec<_>>())
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

/// Says which seed it was where an assertion inside of the world fails.
fn run(setup: Setup, seed: u64, secs: u64) -> Verdict {
    let run = std::panic::AssertUnwindSafe(|| World::new(setup, seed).run(secs * 1_000));
    std::panic::catch_unwind(run).unwrap_or_else(|failed| {
        println!("seed {seed} failed: {setup:?}");
        std::panic::resume_unwind(failed)
    })
}

fn never_over(name: &str, setup: Setup, first: u64, count: u64) {
    never_over_in(name, setup, first, count, RUN_SECS);
}

fn never_over_in(name: &str, setup: Setup, first: u64, count: u64, secs: u64) {
    let verdicts = runs(setup, first, count, secs);
    let sum = |figure: fn(&Verdict) -> u64| verdicts.iter().map(|(_, verdict)| figure(verdict)).sum::<u64>();
    println!(
        "{name}: {} runs, {} s, seeds {first}.., {} admissions, {:.3} of the quota, {} takeovers, over by {} at most where estimates were low",
        verdicts.len(),
        sum(|verdict| verdict.simulated) / 1_000,
        sum(|verdict| verdict.admitted),
        sum(|verdict| verdict.admitted) as f64 / setup.possible(sum(|verdict| verdict.simulated) / 1_000),
        sum(|verdict| verdict.takeovers),
        verdicts.iter().map(|(_, verdict)| verdict.excused).max().unwrap(),
    );
    // Where a store loses writes again and again, some runs are one quarantine from beginning to end.
    let silent = verdicts.iter().filter(|(_, verdict)| verdict.admitted == 0).count();
    assert!(silent * 10 <= verdicts.len(), "{name}: nothing got through in {silent} runs");
    for (seed, verdict) in verdicts {
        assert_eq!(verdict.worst_excess, 0, "{name}: seed {seed} exceeds a quota: {verdict:?}");
    }
}

#[test]
fn no_fault_never_exceeds_a_quota() {
    never_over("no faults", Setup { faults: Faults::NONE, ..Setup::SMALL }, 1, 60);
}

#[test]
fn delays_losses_crashes_and_pauses_never_exceed_a_quota() {
    never_over("all faults", Setup::SMALL, 1_000, 400);
}

#[test]
fn delays_longer_than_a_lot_lives_never_exceed_a_quota() {
    never_over("long delays", Setup { faults: Faults::LONG_DELAYS, ..Setup::SMALL }, 2_000, 200);
}

#[test]
fn permits_that_wait_for_a_connection_never_exceed_a_quota() {
    never_over("slow connections", Setup { faults: Faults::SLOW_CONNECTIONS, ..Setup::SMALL }, 2_500, 50);
}

#[test]
fn a_store_that_loses_writes_never_exceeds_a_quota() {
    never_over("lost writes", Setup { faults: Faults::LOST_WRITES, ..Setup::SMALL }, 3_000, 200);
    never_over("lost terms", Setup { faults: Faults::LOST_TERMS, ..Setup::SMALL }, 3_300, 100);
    never_over("lost answers", Setup { faults: Faults::UNANSWERED, ..Setup::SMALL }, 3_400, 100);
}

/// One that lives on knows what it wrote: nothing is held back, however often the store is started anew, and whichever
/// acknowledgements are lost.
#[test]
fn a_store_that_loses_nothing_is_believed_by_the_last_leader() {
    let setup = Setup { faults: Faults::RESTARTS, coordinators: 1, ..Setup::SMALL };
    for (seed, verdict) in runs(setup, 3_500, 20, RUN_SECS) {
        assert!(verdict.takeovers > 20, "seed {seed}: {verdict:?}");
        assert_eq!((verdict.doubts, verdict.worst_excess), (0, 0), "seed {seed}: {verdict:?}");
    }
    never_over("restarts", Setup { faults: Faults::RESTARTS, ..Setup::SMALL }, 3_700, 50);
}

#[test]
fn larger_quotas_and_more_gateways_never_exceed_a_quota() {
    never_over("ten gateways", Setup { gateways: 10, limit: 60, ..Setup::SMALL }, 4_000, 30);
}

/// Requests, tokens and clients are drawn together, and some estimates are too low.
#[test]
fn several_buckets_are_never_exceeded_but_by_low_estimates() {
    never_over("several buckets", Setup { shape: Shape::Minutes, ..Setup::SMALL }, 6_000, 100);
    let setup = Setup { shape: Shape::Minutes, faults: Faults::LOST_WRITES, ..Setup::SMALL };
    never_over("several buckets, lost writes", setup, 6_500, 50);
    let setup = Setup { shape: Shape::Everything, ..Setup::SMALL };
    never_over_in("all buckets around midnight", setup, 7_000, 100, 600);
}

/// Around the midnights at which days of 23 and 25 hours begin and end, with clocks that are set.
#[test]
fn no_day_exceeds_its_quota() {
    never_over_in("midnights", Setup::DAYS, 8_000, 60, 3_000);
    let setup = Setup { shape: Shape::WholeDays, gateways: 2, ..Setup::DAYS };
    never_over_in("whole days", setup, 8_500, 4, 2 * 86_400);
}

/// I13: of what is blocked, one request at a time finds out whether that is over, however long it takes. Only one that no
/// leader can have heard of for as long as a lot lives is counted as ended.
#[test]
fn one_probe_at_a_time() {
    let quiet = Setup { faults: Faults::NONE, ..Setup::PROBES };
    let verdicts = runs(quiet, 10_000, 10, RUN_SECS);
    let probes: u64 = verdicts.iter().map(|(_, verdict)| verdict.admitted).sum();
    assert!(probes > 10 * RUN_SECS / 20, "the next probe follows the last: {probes}");
    never_over("probes, no faults", quiet, 10_000, 40);
    never_over("probes", Setup::PROBES, 10_500, 200);
    never_over("probes, long delays", Setup { faults: Faults::LONG_DELAYS, ..Setup::PROBES }, 11_000, 50);
}

/// At twice the demand nearly all of the quota is used.
#[test]
fn without_faults_the_quota_is_used() {
    for (limit, least) in [(10, 0.90), (60, 0.95)] {
        let setup = Setup { gateways: 5, limit, faults: Faults::NONE, ..Setup::SMALL };
        let verdicts = runs(setup, 5_000, 10, RUN_SECS);
        let admitted: u64 = verdicts.iter().map(|(_, verdict)| verdict.admitted).sum();
        let used = admitted as f64 / setup.possible(verdicts.len() as u64 * RUN_SECS);
        println!("Q = {limit}: {used:.3} of the quota is used");
        assert!(used >= least, "Q = {limit}: {used:.3} of the quota is used");
    }
}

#[test]
fn broken_variants_are_caught() {
    let mut uncaught = Vec::new();
    for flaw in Flaw::ALL {
        let busy = Setup { flaw: Some(flaw), gateways: 5, load: 4.0, ..Setup::SMALL };
        let setup = match flaw {
            Flaw::LifeFromReceipt => Setup { faults: Faults::LONG_DELAYS, ..busy },
            Flaw::LossUnnoticed | Flaw::CommitsUncompared | Flaw::QuarantineForgotten => {
                Setup { faults: Faults::LOST_WRITES, ..busy }
            }
            Flaw::NoWitness => Setup { faults: Faults::LOST_TERMS, ..busy },
            Flaw::UnansweredVouch => Setup { faults: Faults::UNANSWERED, ..busy },
            Flaw::NoLastLook => Setup { faults: Faults::SLOW_CONNECTIONS, gateways: 2, limit: 60, ..busy },
            Flaw::ExpiredFreed => Setup { gateways: 3, limit: 60, ..busy },
            Flaw::OneDayOnly => Setup { flaw: Some(flaw), ..Setup::DAYS },
            Flaw::ProbeNotListed | Flaw::ProbesUnasked => Setup { flaw: Some(flaw), ..Setup::PROBES },
            Flaw::DebtForgotten => Setup { shape: Shape::Minutes, ..busy },
            _ => busy,
        };
        let secs = if flaw == Flaw::OneDayOnly { 3_000 } else { RUN_SECS };
        let caught = (9_000..9_120).step_by(8).find_map(|first| {
            let verdicts = runs(setup, first, 8, secs);
            verdicts.into_iter().find(|(_, verdict)| verdict.worst_excess > 0)
        });
        match caught {
            Some((seed, verdict)) => println!("{flaw:?}: seed {seed} is over by {}", verdict.worst_excess),
            None => uncaught.push(flaw),
        }
    }
    assert!(uncaught.is_empty(), "not caught: {uncaught:?}");
}

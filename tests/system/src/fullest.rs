//! How much of its quotas an upstream's log shows to be used: arrivals count, and nothing else.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use keyfleet_simulator::Received;

/// What one project and model were asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Use {
    /// The project.
    pub project: String,
    /// The model.
    pub model: String,
    /// Everything.
    pub total: u64,
    /// The largest sum in any window, wherever it begins, divided by the limit: beyond 1 the limit was exceeded.
    pub fullest: f64,
}

/// How much of a quota of `limit` in each `window` was used. `weigh` says what an arrival counts for.
pub fn uses(log: &[Received], window: Duration, limit: u64, weigh: impl Fn(&Received) -> u64) -> Vec<Use> {
    let mut buckets: BTreeMap<(String, String), Vec<(Duration, u64)>> = BTreeMap::new();
    for call in log.iter().filter(|call| call.method == "POST") {
        let (Some(project), Some(model)) = (call.project.clone(), call.model.clone()) else { continue };
        let arrival = (Duration::from_micros(call.mono_us), weigh(call));
        buckets.entry((project, model)).or_default().push(arrival);
    }
    let judged = buckets.into_iter().map(|((project, model), mut arrivals)| {
        arrivals.sort_unstable();
        let total = arrivals.iter().map(|(_, n)| n).sum();
        let fullest = ratio(largest(&arrivals, window), limit);
        Use { project, model, total, fullest }
    });
    judged.collect()
}

/// The largest sum of the arrivals of any window. Two that are a whole window apart are not in the same one.
fn largest(arrivals: &[(Duration, u64)], window: Duration) -> u64 {
    let (mut inside, mut sum, mut largest) = (VecDeque::new(), 0, 0);
    for (at, n) in arrivals {
        inside.push_back((at, n));
        sum += n;
        while let Some((_, gone)) = inside.pop_front_if(|(first, _)| at.saturating_sub(**first) >= window) {
            sum -= gone;
        }
        largest = largest.max(sum);
    }
    largest
}

fn ratio(part: u64, whole: u64) -> f64 {
    let float = |n: u64| f64::from(u32::try_from(n).expect("a small number"));
    float(part) / float(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fullest_window_may_begin_anywhere() {
        let minute = Duration::from_mins(1);
        let at = |seconds: &[u64]| -> Vec<_> {
            seconds.iter().map(|second| (Duration::from_secs(*second), 1)).collect()
        };
        assert_eq!(largest(&at(&[0, 59, 61, 118]), minute), 3, "no minute of the clock holds three");
        assert_eq!(largest(&at(&[0, 60, 120]), minute), 1);
        assert_eq!(largest(&at(&[]), minute), 0);
    }
}

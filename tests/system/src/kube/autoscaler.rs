//! The decisions of a `HorizontalPodAutoscaler`, as its controller computes them from one metric of the pods.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::Value;

/// A ratio that is closer to 1 changes nothing.
const TOLERANCE: f64 = 0.1;

/// A controller with its memory. Its clock is the caller's.
#[derive(Debug)]
pub struct Autoscaler {
    min: usize,
    max: usize,
    /// The average of the metric that a pod is to have.
    target: f64,
    up: Rules,
    down: Rules,
    /// What was computed, before any rule, and when.
    recommended: VecDeque<(Duration, usize)>,
    /// What was done, and when: from how many to how many.
    done: VecDeque<(Duration, usize, usize)>,
}

/// One side of `behavior`, with `selectPolicy: Max`.
#[derive(Debug)]
struct Rules {
    stabilization: Duration,
    policies: Vec<(Step, Duration)>,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Pods(usize),
    Percent(usize),
}

impl Autoscaler {
    /// How often the controller decides.
    pub const SYNC: Duration = Duration::from_secs(15);

    /// Reads a `HorizontalPodAutoscaler`, as the API server has it; `target` instead of the average that it names.
    ///
    /// # Panics
    /// If it has no behaviour.
    pub fn of(object: &Value, target: f64) -> Self {
        let spec = &object["spec"];
        let number = |name: &str| usize_of(&spec[name]).expect("a number of replicas");
        Self {
            min: number("minReplicas"),
            max: number("maxReplicas"),
            target,
            up: Rules::of(&spec["behavior"]["scaleUp"]),
            down: Rules::of(&spec["behavior"]["scaleDown"]),
            recommended: VecDeque::new(),
            done: VecDeque::new(),
        }
    }

    /// How many pods there are to be, from what each pod has now.
    pub fn decide(&mut self, now: Duration, readings: &[f64]) -> usize {
        let current = readings.len();
        let desired = self.desired(readings);
        let calm = self.stabilized(now, current, desired);
        self.recommended.push_back((now, desired));
        let limited = if calm > current {
            calm.min(self.most(now, current))
        } else {
            calm.max(self.least(now, current))
        };
        let decided = limited.clamp(self.min, self.max);
        if decided != current {
            self.done.push_back((now, current, decided));
        }
        decided
    }

    #[expect(clippy::cast_precision_loss, reason = "a few pods")]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small number from 0")]
    fn desired(&self, readings: &[f64]) -> usize {
        let ratio = readings.iter().sum::<f64>() / readings.len().max(1) as f64 / self.target;
        if (ratio - 1.0).abs() <= TOLERANCE {
            return readings.len();
        }
        ((ratio * readings.len() as f64).ceil() as usize).clamp(self.min, self.max)
    }

    /// Within a window, only what was recommended all the time is followed.
    fn stabilized(&self, now: Duration, current: usize, desired: usize) -> usize {
        let since = |window: Duration| {
            let recent = self.recommended.iter().filter(move |(at, _)| now.saturating_sub(*at) < window);
            recent.map(|(_, replicas)| *replicas)
        };
        let up = since(self.up.stabilization).fold(desired, usize::min);
        let down = since(self.down.stabilization).fold(desired, usize::max);
        current.max(up).min(down.max(up))
    }

    fn most(&self, now: Duration, current: usize) -> usize {
        let limit = |(step, period): &(Step, Duration)| {
            let start = current - self.added(now, *period).min(current) + self.removed(now, *period);
            match step {
                Step::Pods(pods) => start + pods,
                Step::Percent(percent) => (start * (100 + percent)).div_ceil(100),
            }
        };
        self.up.policies.iter().map(limit).max().unwrap_or(self.max).max(current)
    }

    fn least(&self, now: Duration, current: usize) -> usize {
        let limit = |(step, period): &(Step, Duration)| {
            let start = current + self.removed(now, *period) - self.added(now, *period).min(current);
            match step {
                Step::Pods(pods) => start.saturating_sub(*pods),
                Step::Percent(percent) => start * (100 - percent.min(&100)) / 100,
            }
        };
        self.down.policies.iter().map(limit).min().unwrap_or(self.min).min(current)
    }

    fn added(&self, now: Duration, period: Duration) -> usize {
        self.within(now, period).map(|(from, to)| to.saturating_sub(from)).sum()
    }

    fn removed(&self, now: Duration, period: Duration) -> usize {
        self.within(now, period).map(|(from, to)| from.saturating_sub(to)).sum()
    }

    fn within(&self, now: Duration, period: Duration) -> impl Iterator<Item = (usize, usize)> {
        let recent = self.done.iter().filter(move |(at, ..)| now.saturating_sub(*at) < period);
        recent.map(|(_, from, to)| (*from, *to))
    }
}

impl Rules {
    fn of(rules: &Value) -> Self {
        let seconds = |value: &Value| value.as_u64().map(Duration::from_secs);
        assert!(rules["selectPolicy"].as_str().is_none_or(|policy| policy == "Max"), "{rules}");
        let policy = |policy: &Value| {
            let value = usize_of(&policy["value"])?;
            let step = match policy["type"].as_str()? {
                "Pods" => Step::Pods(value),
                "Percent" => Step::Percent(value),
                _ => return None,
            };
            Some((step, seconds(&policy["periodSeconds"])?))
        };
        let policies = rules["policies"].as_array().expect("policies").iter().map(policy).collect();
        Self {
            stabilization: seconds(&rules["stabilizationWindowSeconds"]).expect("a window"),
            policies: Option::expect(policies, "policies of pods or percent"),
        }
    }
}

fn usize_of(value: &Value) -> Option<usize> {
    value.as_u64()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn scaler(down_window: u64) -> Autoscaler {
        let policy = |kind: &str, value: u64, period: u64| json!({"type": kind, "value": value, "periodSeconds": period});
        let object = json!({"spec": {
            "minReplicas": 2, "maxReplicas": 20,
            "behavior": {
                "scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max",
                    "policies": [policy("Percent", 100, 15), policy("Pods", 4, 15)]},
                "scaleDown": {"stabilizationWindowSeconds": down_window, "policies": [policy("Pods", 1, 120)]},
            },
        }});
        Autoscaler::of(&object, 10.0)
    }

    #[expect(clippy::cast_precision_loss, reason = "a few pods")]
    fn follow(scaler: &mut Autoscaler, from: usize, total: f64, times: usize) -> Vec<usize> {
        let mut replicas = from;
        let start = scaler.recommended.back().map_or(Duration::ZERO, |(at, _)| *at + Autoscaler::SYNC);
        let decide = |step| {
            let now = start + Autoscaler::SYNC * u32::try_from(step).expect("few");
            replicas = scaler.decide(now, &vec![total / replicas as f64; replicas]);
            replicas
        };
        (0..times).map(decide).collect()
    }

    #[test]
    fn growth_is_by_four_or_twofold_whichever_is_more() {
        assert_eq!(follow(&mut scaler(300), 3, 187.0, 4), [7, 14, 19, 19]);
    }

    #[test]
    fn what_is_close_to_the_target_changes_nothing() {
        assert_eq!(follow(&mut scaler(0), 10, 109.0, 2), [10, 10]);
        assert_eq!(follow(&mut scaler(0), 10, 91.0, 2), [10, 10]);
        assert_eq!(follow(&mut scaler(0), 10, 111.0, 1), [12]);
    }

    #[test]
    fn one_pod_goes_every_two_minutes_once_five_are_over() {
        let mut scaler = scaler(300);
        assert_eq!(follow(&mut scaler, 5, 50.0, 1), [5]);
        // The last high recommendation is 300 seconds old after 20 rounds.
        let replicas = follow(&mut scaler, 5, 10.0, 36);
        assert_eq!(replicas.iter().position(|replicas| *replicas == 4), Some(19));
        assert_eq!(replicas.iter().position(|replicas| *replicas == 3), Some(27));
        assert_eq!(replicas.iter().position(|replicas| *replicas == 2), Some(35));
    }

    #[test]
    fn without_a_window_a_dip_is_followed_at_once() {
        assert_eq!(follow(&mut scaler(0), 5, 10.0, 1), [4]);
    }
}

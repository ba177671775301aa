//! When the parts of an answer leave: latency profiles turned into pauses.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use crate::answer::{Rendered, Script};
use crate::chance::Chance;
use crate::reply::Step;
use crate::world::Latency;

/// Tokens per second of a fast model.
const RATE: f64 = 190.0;
/// Spread of the time to the first token such that its 99th percentile is six times its median.
const TTFT_SIGMA: f64 = 0.77;

/// The silence before the headers, and the steps of the body.
pub(crate) fn schedule(
    latency: Latency,
    rendered: Rendered,
    script: &Script,
    chance: &mut Chance,
) -> (Duration, VecDeque<Step>) {
    let Rendered { frames, end, streamed, .. } = rendered;
    let delay = first_token(latency, streamed, script, chance);
    let tokens = script.chunks.first().map_or(0, |piece| piece.tokens);
    let mut steps = VecDeque::with_capacity(frames.len() * 2 + 1);
    for (at, frame) in frames.into_iter().enumerate() {
        if at > 0
            && let Some(gap) = gap(latency, tokens, chance)
        {
            steps.push_back(Step::Wait(gap));
        }
        steps.push_back(Step::Data(frame));
    }
    if !end.is_empty() {
        steps.push_back(Step::Data(Bytes::clone(&end)));
    }
    (delay, steps)
}

fn first_token(latency: Latency, streamed: bool, script: &Script, chance: &mut Chance) -> Duration {
    match latency {
        Latency::Zero => Duration::ZERO,
        Latency::Fixed { ttft_ms, .. } => Duration::from_millis(ttft_ms),
        Latency::Realistic => {
            let thinking = if script.thinking { chance.log_normal(3.0, 0.8) } else { 0.0 };
            let rest = if streamed { 0.0 } else { float(script.plain.tokens) / RATE };
            seconds(chance.log_normal(0.45, TTFT_SIGMA) + thinking + rest)
        }
    }
}

fn gap(latency: Latency, tokens: u64, chance: &mut Chance) -> Option<Duration> {
    match latency {
        Latency::Zero | Latency::Fixed { gap_ms: 0, .. } => None,
        Latency::Fixed { gap_ms, .. } => Some(Duration::from_millis(gap_ms)),
        Latency::Realistic if chance.below(100) == 0 => Some(seconds(2.0 + 8.0 * chance.unit())),
        Latency::Realistic => Some(seconds(float(tokens) / RATE * chance.log_normal(1.0, 0.5))),
    }
}

fn seconds(time: f64) -> Duration {
    Duration::try_from_secs_f64(time.clamp(0.0, 60.0)).unwrap_or_default()
}

fn float(tokens: u64) -> f64 {
    f64::from(u32::try_from(tokens).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::AnswerSpec;

    #[test]
    fn the_realistic_profile_has_the_measured_middle_and_tail() {
        let script = Script::new(&AnswerSpec::default(), 1);
        let draw = |stream| first_token(Latency::Realistic, true, &script, &mut Chance::new(1, stream));
        let mut times: Vec<Duration> = (0..2_000).map(draw).collect();
        times.sort();
        let (median, tail) = (times[1_000].as_secs_f64(), times[1_980].as_secs_f64());
        assert!((0.4..0.5).contains(&median), "{median}");
        assert!((4.0..8.0).contains(&(tail / median)), "{tail}");
        let mut chance = Chance::new(1, 1);
        let gaps = (0..2_000).filter_map(|_| gap(Latency::Realistic, 12, &mut chance));
        let stalls = gaps.filter(|gap| gap.as_secs() >= 2).count();
        assert!((5..50).contains(&stalls), "{stalls}");
    }
}

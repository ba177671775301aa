//! Interleaved measurements: in every round each contender once, in an order that rotates, so that whatever else the
//! machine does concerns all of them alike.

use std::collections::BTreeMap;
use std::io;

use crate::contender::Contender;

/// What every contender did in one round.
pub(crate) type Round<T> = BTreeMap<Contender, T>;

/// One figure of every contender that it makes sense for.
pub(crate) type Figures = BTreeMap<Contender, f64>;

/// What every contender did in every round.
pub(crate) struct Rounds<T>(Vec<Round<T>>);

impl<T> Rounds<T> {
    pub(crate) async fn measure(
        count: usize,
        contenders: &[Contender],
        mut measure: impl AsyncFnMut(Contender) -> io::Result<T>,
    ) -> io::Result<Self> {
        let mut rounds = Vec::with_capacity(count);
        for round in 0..count {
            let mut order = contenders.to_vec();
            order.rotate_left(round % contenders.len());
            let mut found = BTreeMap::new();
            for contender in order {
                found.insert(contender, measure(contender).await?);
            }
            rounds.push(found);
        }
        Ok(Self(rounds))
    }

    /// The median of a figure over the rounds, for every contender.
    pub(crate) fn medians(&self, figure: impl Fn(&T) -> f64) -> Figures {
        let contenders = self.0.first().into_iter().flat_map(Round::keys);
        contenders.map(|who| (*who, self.median(|round| figure(&round[who])))).collect()
    }

    /// The same of what a figure is beyond that of no proxy in the same round.
    pub(crate) fn medians_beyond_direct(&self, figure: impl Fn(&T) -> f64) -> Figures {
        let direct = |round: &Round<T>| figure(&round[&Contender::Direct]);
        let contenders = self.0.first().into_iter().flat_map(Round::keys);
        contenders
            .filter(|who| **who != Contender::Direct)
            .map(|who| (*who, self.median(|round| figure(&round[who]) - direct(round))))
            .collect()
    }

    /// The largest of a figure over the rounds, for every contender.
    pub(crate) fn worst(&self, figure: impl Fn(&T) -> f64) -> Figures {
        let mut worst = Figures::new();
        for (who, effort) in self.0.iter().flatten() {
            let known = worst.entry(*who).or_default();
            *known = figure(effort).max(*known);
        }
        worst
    }

    /// The median over the rounds of a figure that may concern several contenders.
    pub(crate) fn median(&self, figure: impl Fn(&Round<T>) -> f64) -> f64 {
        let mut figures: Vec<f64> = self.0.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        figures.get(figures.len() / 2).copied().unwrap_or_default()
    }

    /// The median over the rounds of the gateway's figure in units of nginx's in the same round.
    pub(crate) fn to_nginx(&self, figure: impl Fn(&T) -> f64) -> f64 {
        self.median(|round| figure(&round[&Contender::Gateway]) / figure(&round[&Contender::Nginx]))
    }
}

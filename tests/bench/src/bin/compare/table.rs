//! The one table: a line per figure, with its gate and its goal where there are any.

use std::fmt::{self, Write as _};

use crate::contender::Contender;
use crate::rounds::Figures;

/// A line of the table.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// What each contender did; those that a figure makes no sense for are missing.
    pub(crate) figures: Figures,
    pub(crate) decimals: usize,
    /// Whether figures are followed by how many times nginx's they are.
    pub(crate) in_nginx: bool,
    pub(crate) gate: Option<Gate>,
}

/// What a figure must reach, and what it should.
pub(crate) struct Gate {
    pub(crate) bound: Bound,
    pub(crate) measured: f64,
    pub(crate) limit: f64,
    pub(crate) goal: f64,
    pub(crate) decimals: usize,
    pub(crate) unit: &'static str,
}

/// From which side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bound {
    AtMost,
    AtLeast,
}

impl Row {
    pub(crate) fn new(name: &'static str, figures: Figures, decimals: usize) -> Self {
        Self { name, figures, decimals, in_nginx: false, gate: None }
    }

    /// Judged by how many times nginx's figure the gateway's is.
    pub(crate) fn times_nginx(self, measured: f64, limit: f64, goal: f64) -> Self {
        let gate = Gate { bound: Bound::AtMost, measured, limit, goal, decimals: 2, unit: "×" };
        Self { in_nginx: true, gate: Some(gate), ..self }
    }

    pub(crate) fn gated(self, gate: Gate) -> Self {
        Self { gate: Some(gate), ..self }
    }

    /// Whether its gate, if it has one, holds.
    pub(crate) fn passes(&self) -> bool {
        self.gate.as_ref().is_none_or(|gate| gate.reaches(gate.limit))
    }

    fn cell(&self, contender: Contender) -> String {
        let Some(figure) = self.figures.get(&contender) else { return "-".to_owned() };
        let times = self.figures.get(&Contender::Nginx).map(|nginx| figure / nginx);
        match times.filter(|_| self.in_nginx && matches!(contender, Contender::Bare | Contender::Gateway)) {
            Some(times) => format!("{figure:.*} ({times:.1}×)", self.decimals),
            None => format!("{figure:.*}", self.decimals),
        }
    }
}

impl Gate {
    /// Of a figure that must not be larger.
    pub(crate) fn at_most(measured: f64, limit: f64, goal: f64, decimals: usize, unit: &'static str) -> Self {
        Self { bound: Bound::AtMost, measured, limit, goal, decimals, unit }
    }

    /// Of a figure that must not be smaller.
    pub(crate) fn at_least(
        measured: f64,
        limit: f64,
        goal: f64,
        decimals: usize,
        unit: &'static str,
    ) -> Self {
        Self { bound: Bound::AtLeast, measured, limit, goal, decimals, unit }
    }

    /// A figure that is not a number reaches nothing.
    fn reaches(&self, mark: f64) -> bool {
        match self.bound {
            Bound::AtMost => self.measured <= mark,
            Bound::AtLeast => self.measured >= mark,
        }
    }

    fn show(&self, figure: f64) -> String {
        format!("{figure:.*}{}", self.decimals, self.unit)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| {} |", self.name)?;
        for contender in Contender::ALL {
            write!(f, " {} |", self.cell(contender))?;
        }
        let Some(gate) = &self.gate else { return write!(f, " | | |") };
        let sign = if gate.bound == Bound::AtMost { '≤' } else { '≥' };
        write!(f, " {sign} {} | {sign} {} |", gate.show(gate.limit), gate.show(gate.goal))?;
        let verdict = match (gate.reaches(gate.goal), gate.reaches(gate.limit)) {
            (true, true) => "goal",
            (false, true) => "pass",
            (_, false) => "**FAIL**",
        };
        write!(f, " {}: {verdict} |", gate.show(gate.measured))
    }
}

/// Prints all of it as Markdown.
pub(crate) fn print(rows: &[Row]) -> String {
    let heads: Vec<String> = Contender::ALL.iter().map(ToString::to_string).collect();
    let mut text = format!("| median | {} | gate | goal | verdict |\n", heads.join(" | "));
    text.push_str("|---|---:|---:|---:|---:|---|---|---|\n");
    for row in rows {
        let _ = writeln!(text, "{row}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(measured: f64) -> Row {
        let figures = [(Contender::Nginx, 10.0), (Contender::Gateway, 10.0 * measured)].into();
        Row::new("CPU", figures, 1).times_nginx(measured, 2.5, 2.0)
    }

    #[test]
    fn a_row_says_what_it_is_worth() {
        assert_eq!(
            row(1.9).to_string(),
            "| CPU | - | 10.0 | - | 19.0 (1.9×) | ≤ 2.50× | ≤ 2.00× | 1.90×: goal |"
        );
        assert!(row(2.5).to_string().ends_with("2.50×: pass |"));
        assert!(row(2.6).to_string().ends_with("2.60×: **FAIL** |"));
        assert!(row(2.5).passes() && !row(2.6).passes() && !row(f64::NAN).passes());
    }
}

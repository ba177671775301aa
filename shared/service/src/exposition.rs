//! What a scraper gets: `OpenMetrics` with exemplars if it asks for that, else the older text format, which everything
//! reads. The older one is translated from the newer, and so is what a collector gets, so that all tell the same.

mod negotiate;
pub(crate) mod otlp;
mod plain;
mod process;

use http::HeaderMap;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use self::process::Process;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// An answer to a scraper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposition {
    /// Its content type.
    pub content_type: &'static str,
    /// Its body.
    pub text: String,
}

/// Figures whose names all begin with a prefix of their own. A process has one or more of them.
#[derive(Debug)]
pub struct Part {
    prefix: &'static str,
    figures: Box<dyn Collector>,
}

impl Part {
    /// Those figures, under this prefix.
    pub fn new(prefix: &'static str, figures: impl Collector) -> Self {
        Self { prefix, figures: Box::new(figures) }
    }
}

/// Tells the figures of a process, in the format that the scraper's headers ask for.
pub fn expose(parts: Vec<Part>, headers: &HeaderMap) -> Exposition {
    let text = openmetrics(parts);
    if negotiate::asks_for_openmetrics(headers) {
        Exposition { content_type: OPENMETRICS, text }
    } else {
        Exposition { content_type: PLAIN, text: plain::plain(&text) }
    }
}

/// Tells the same as `OpenMetrics`. What is known of the process itself comes last, under names that are the same in all
/// programs.
pub fn openmetrics(parts: Vec<Part>) -> String {
    let mut text = String::new();
    for Part { prefix, figures } in parts {
        let mut part = Registry::with_prefix(prefix);
        part.register_collector(figures);
        // Writing to a string cannot fail.
        let _ = prometheus_client::encoding::text::encode_registry(&mut text, &part);
    }
    let mut process = Registry::default();
    process.register_collector(Box::new(Process::read()));
    let _ = prometheus_client::encoding::text::encode(&mut text, &process);
    text
}

/// Where figures are written down, one name at a time.
#[derive(Debug)]
pub struct Sheet<'a>(DescriptorEncoder<'a>);

/// Writing to a string cannot fail, but encoders may say that it did.
pub type Written = Result<(), std::fmt::Error>;

impl<'a> Sheet<'a> {
    /// Writes to an encoder.
    pub fn new(encoder: DescriptorEncoder<'a>) -> Self {
        Self(encoder)
    }

    /// One figure without labels.
    pub fn one(&mut self, name: &str, help: &str, figure: &impl EncodeMetric) -> Written {
        let metric = self.0.encode_descriptor(name, help, None, figure.metric_type())?;
        figure.encode(metric)
    }

    /// A whole number that goes up and down.
    pub fn gauge(&mut self, name: &str, help: &str, value: u64) -> Written {
        self.one(name, help, &gauge(value))
    }

    /// Seconds, a score, or another fraction that goes up and down.
    pub fn fraction(&mut self, name: &str, help: &str, value: f64) -> Written {
        self.one(name, help, &ConstGauge::new(value))
    }

    /// A number that only grows. Its name gets `_total` behind it.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) -> Written {
        self.one(name, help, &ConstCounter::new(value))
    }

    /// Several of one name, told apart by their labels; nothing at all, if there is none.
    pub fn family<L: EncodeLabelSet, M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, M)>,
    ) -> Written {
        let mut series = series.into_iter().peekable();
        let Some((_, first)) = series.peek() else { return Ok(()) };
        let mut family = self.0.encode_descriptor(name, help, None, first.metric_type())?;
        series.try_for_each(|(labels, metric)| metric.encode(family.encode_family(&labels)?))
    }
}

/// A gauge of a [`Sheet::family`].
pub fn gauge(value: u64) -> ConstGauge<i64> {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX))
}

/// A counter of a [`Sheet::family`].
pub fn counter(value: u64) -> ConstCounter<u64> {
    ConstCounter::new(value)
}

#[cfg(test)]
mod tests {
    use std::fmt::Error;

    use super::*;

    #[derive(Debug)]
    struct Apples;

    impl Collector for Apples {
        fn encode(&self, encoder: DescriptorEncoder) -> Result<(), Error> {
            let mut sheet = Sheet::new(encoder);
            sheet.counter("apples", "Apples eaten", 3)?;
            sheet.family("none", "Nothing", Vec::<([(&str, &str); 1], ConstGauge<i64>)>::new())?;
            sheet.family("trees", "Trees by kind", [([("kind", "a\"b\\\nc # {")], gauge(2))])
        }
    }

    #[test]
    fn a_scraper_gets_the_format_that_it_asks_for() {
        let mut headers = HeaderMap::new();
        let parts = || vec![Part::new("farm", Apples), Part::new("shop", Apples)];
        let plain = expose(parts(), &headers);
        headers.insert("accept", "application/openmetrics-text".parse().unwrap());
        let open = expose(parts(), &headers);
        assert_eq!((plain.content_type, open.content_type), (PLAIN, OPENMETRICS));
        let told = |suffix| {
            let parts = ["farm", "shop"].map(|part| {
                format!(
                    "# HELP {part}_apples{suffix} Apples eaten\n# TYPE {part}_apples{suffix} counter\n\
                     {part}_apples_total 3\n# HELP {part}_trees Trees by kind\n# TYPE {part}_trees gauge\n\
                     {part}_trees{{kind=\"a\\\"b\\\\\\nc # {{\"}} 2\n"
                )
            });
            parts.concat() + "# HELP process_"
        };
        assert!(plain.text.starts_with(&told("_total")), "{}", plain.text);
        assert!(open.text.starts_with(&told("")), "{}", open.text);
        assert!(open.text.ends_with("\n# EOF\n") && !plain.text.contains("EOF"));
    }
}

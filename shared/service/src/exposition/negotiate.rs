//! Which format a scraper asks for.

use http::HeaderMap;
use http::header::ACCEPT;

/// Whether it likes `OpenMetrics` as much as the older format, and says so by name.
pub(super) fn asks_for_openmetrics(headers: &HeaderMap) -> bool {
    let (mut open, mut plain) = (0.0_f32, 0.0_f32);
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    for range in accepted.flat_map(|value| value.split(',')) {
        let (kind, parameters) = range.split_once(';').unwrap_or((range, ""));
        let parameter = |name: &str| {
            let pairs = parameters.split(';').filter_map(|pair| pair.split_once('='));
            let found = pairs.into_iter().find(|(given, _)| given.trim().eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.trim().trim_matches('"'))
        };
        let weight = parameter("q").map_or(1.0, |q| q.parse().unwrap_or(0.0));
        match kind.trim().to_ascii_lowercase().as_str() {
            "application/openmetrics-text" if parameter("version").is_none_or(|v| v == "1.0.0") => {
                open = open.max(weight);
            }
            "text/plain" | "text/*" | "*/*" => plain = plain.max(weight),
            _ => {}
        }
    }
    open > 0.0 && open >= plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_asks_for_openmetrics_gets_it() {
        let prometheus_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;\
                            q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                            application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;\
                            escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, open) in [
            (prometheus_2, true),
            (prometheus_3, true),
            ("Application/OpenMetrics-Text; version=\"1.0.0\"", true),
            ("application/openmetrics-text, text/plain", true),
            ("", false),
            ("*/*", false),
            ("text/html,application/xhtml+xml,*/*;q=0.8", false),
            ("text/plain;version=0.0.4", false),
            ("application/openmetrics-text;q=0.5,text/plain", false),
            ("application/openmetrics-text;q=0", false),
            ("application/openmetrics-text;q=much", false),
            ("application/openmetrics-text;version=0.0.1", false),
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
                false,
            ),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())]);
            assert_eq!(asks_for_openmetrics(&headers), open, "{accept}");
        }
        assert!(!asks_for_openmetrics(&HeaderMap::new()));
        let twice =
            ["text/plain;q=0.1", "application/openmetrics-text"].map(|kind| (ACCEPT, kind.parse().unwrap()));
        assert!(asks_for_openmetrics(&twice.into_iter().collect()), "a header may come in parts");
    }
}

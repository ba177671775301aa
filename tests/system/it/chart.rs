//! The Helm chart: what it renders to is what Kubernetes takes, what the examples show, and what the programs run on.

mod policy;
mod rendered;
mod running;
mod values;

use std::fs;

use keyfleet_tests::helm::chart;

/// Set it to write anew what is derived from the chart: the renderings of the examples and the README's table.
const RENEW: &str = "KEYFLEET_RENEW";

/// Compares a file of the chart with what it should be.
fn assert_derived(name: &str, should_be: &str) {
    let path = chart().join(name);
    if std::env::var_os(RENEW).is_some() {
        fs::write(&path, should_be).expect("the file is written");
    }
    let is = fs::read_to_string(&path).unwrap_or_default();
    let differs = is.lines().zip(should_be.lines()).position(|(is, should_be)| is != should_be);
    let at = differs.unwrap_or_else(|| is.lines().count().min(should_be.lines().count()));
    assert!(
        is == should_be,
        "{name} is not what the chart makes of it, from line {}:\nis        {}\nshould be {}\nIf that is meant, run \
         {RENEW}=1 scripts/test -p keyfleet-tests --test system -- chart::",
        at + 1,
        is.lines().nth(at).unwrap_or_default(),
        should_be.lines().nth(at).unwrap_or_default(),
    );
}

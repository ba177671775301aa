//! The HTML that Google's front ends send when no API server was reached.

macro_rules! page {
    ($title:literal, $code:literal, $text:literal) => {
        concat!(
            "<!DOCTYPE html>\n<html lang=en>\n  <meta charset=utf-8>\n  <title>Error ",
            $title,
            "!!1</title>\n  <p><b>",
            $code,
            "</b> <ins>That's an error.</ins>\n  <p>",
            $text,
            "  <ins>That's all we know.</ins>\n"
        )
    };
}

pub(crate) const NOT_FOUND: &str =
    page!("404 (Not Found)", "404.", "The requested URL was not found on this server.");
pub(crate) const BAD_GATEWAY: &str = page!(
    "502 (Server Error)",
    "502.",
    "The server encountered a temporary error and could not complete your request.<p>Please try again in 30 seconds."
);
pub(crate) const TOO_LARGE: &str =
    page!("413 (Request Entity Too Large)", "413.", "Your client issued a request that was too large.");

/// What an address gets that Google takes for a robot.
pub(crate) const SORRY: &str = "<html><head><meta http-equiv=\"content-type\" content=\"text/html; charset=utf-8\"/>\
    <title>Sorry...</title></head><body><h1>We're sorry...</h1><p>... but your computer or network may be sending \
    automated queries. To protect our users, we can't process your request right now.</p></body></html>\n";

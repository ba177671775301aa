//! Networks in CIDR form.

use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use super::schema::IpNet;

/// A text that is no network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a network in CIDR form")]
pub struct NotANetwork;

impl FromStr for IpNet {
    type Err = NotANetwork;

    /// `10.0.0.0/8`, or one address alone.
    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let (addr, prefix) = match text.split_once('/') {
            Some((addr, prefix)) => (addr, Some(prefix)),
            None => (text, None),
        };
        let addr: IpAddr = addr.trim().parse().map_err(|_| NotANetwork)?;
        let longest = if addr.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            Some(prefix) => prefix.trim().parse().map_err(|_| NotANetwork)?,
            None => longest,
        };
        if prefix > longest { Err(NotANetwork) } else { Ok(Self { addr, prefix }) }
    }
}

impl IpNet {
    /// Whether an address is in the network. An IPv4 address that came in through an IPv6 socket is an IPv4 one.
    pub fn contains(&self, addr: IpAddr) -> bool {
        let (net, addr) = (self.addr.to_canonical(), addr.to_canonical());
        // A mapped network counts its prefix from the start of the 128 bits.
        let mapped = self.addr.is_ipv6() && net.is_ipv4();
        let prefix = if mapped { u32::from(self.prefix).saturating_sub(96) } else { u32::from(self.prefix) };
        let (net_bits, addr_bits, width) = match (net, addr) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), Ipv6Addr::BITS),
            _ => return false,
        };
        let ignored = width - prefix.min(width);
        net_bits.checked_shr(ignored).unwrap_or(0) == addr_bits.checked_shr(ignored).unwrap_or(0)
    }
}

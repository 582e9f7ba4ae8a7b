// SPDX-License-Identifier: GPL-2.0

//! What an operator sees of kernel::physdma, in debugfs:
//!
//! - `providers`: whose memory is open to other devices, who wants to know when it goes, and how
//!   many mappings it has;
//! - `routes`: for each of them and each client, how the one reaches the other, or why it does not,
//!   before anybody tries; and how many requests did;
//! - `errors`: what was refused without a provider.
//!
//! Reading costs; what is read costs nothing.

use kernel::{
    debugfs::{
        Dir,
        File, //
    },
    fmt,
    physdma::{
        self,
        Provider,
        Route,
        Traffic, //
    },
    prelude::*, //
};

module! {
    type: Physdma,
    name: "physdma",
    authors: ["The physdma authors"],
    description: "Providers and routes of kernel::physdma in debugfs",
    license: "GPL",
}

/// What is shown in a file.
type Show = fn(&mut fmt::Formatter<'_>) -> fmt::Result;

#[pin_data]
struct Physdma {
    #[pin]
    providers: File<Show>,
    #[pin]
    routes: File<Show>,
    #[pin]
    errors: File<Show>,
    _dir: Dir,
}

/// Every provider; what could not be listed is said.
fn for_each(
    f: &mut fmt::Formatter<'_>,
    mut show: impl FnMut(&mut fmt::Formatter<'_>, &Provider) -> fmt::Result,
) -> fmt::Result {
    match physdma::providers() {
        Ok(providers) => providers.iter().try_for_each(|provider| show(f, provider)),
        Err(_) => writeln!(f, "no memory to list the providers"),
    }
}

fn show_providers(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(
        f,
        "device       bar first              last               pages state    cpu-maps holders"
    )?;
    for_each(f, |f, provider| {
        let range = provider.range();
        write!(
            f,
            "{} {:3} {:#018x} {:#018x} {:5} {:8} {:8}",
            range.device().address(),
            range.bar(),
            range.first(),
            range.last(),
            if provider.has_pages() { "yes" } else { "no" },
            if provider.is_revoked() { "revoked" } else { "open" },
            provider.cpu_traffic().1,
        )?;
        let mut result = Ok(());
        provider.for_each_holder(|name| {
            result = result.and_then(|()| write!(f, " {}", name));
        });
        result?;
        writeln!(f)
    })
}

fn show_routes(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(
        f,
        "provider     bar client       hops mapped     in-flight  refused    route"
    )?;
    for_each(f, |f, provider| {
        let mut result = Ok(());
        provider.for_each_client(|traffic| {
            result = result.and_then(|()| show_route(f, provider, &traffic));
        });
        result
    })
}

fn show_route(
    f: &mut fmt::Formatter<'_>,
    provider: &Provider,
    traffic: &Traffic<'_>,
) -> fmt::Result {
    let range = provider.range();
    write!(f, "{} {:3} ", range.device().address(), range.bar())?;
    match traffic.client {
        Some(client) => write!(f, "{:12}", client.name())?,
        None => write!(f, "{:12}", "-")?,
    }
    match traffic.route {
        Ok((_, hops)) => write!(f, " {hops:4}")?,
        Err(_) => write!(f, "    -")?,
    }
    write!(
        f,
        " {:10} {:10} {:10} ",
        traffic.mapped, traffic.in_flight, traffic.refused
    )?;
    match traffic.route {
        Ok((Route::HostBridge, _)) => writeln!(f, "host bridge"),
        Ok((Route::Bus { offset }, _)) => writeln!(f, "bus address, offset {offset:#x}"),
        Ok((Route::Internal { bar, .. }, _)) => writeln!(f, "internal, BAR {bar}"),
        Err(refused) => writeln!(f, "refused: {refused}"),
    }
}

fn show_errors(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "unknown-address {}", physdma::unknown_requests())
}

impl kernel::InPlaceModule for Physdma {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        let dir = Dir::new(c"physdma");
        let file = |name: &'static CStr, show: Show| {
            dir.read_callback_file(name, show, &|show: &Show, f: &mut fmt::Formatter<'_>| show(f))
        };
        try_pin_init!(Self {
            providers <- file(c"providers", show_providers),
            routes <- file(c"routes", show_routes),
            errors <- file(c"errors", show_errors),
            _dir: dir.clone(),
        })
    }
}

// SPDX-License-Identifier: GPL-2.0

//! What an operator sees of kernel::physdma, in debugfs:
//!
//! - `providers`: whose memory is open to other devices, how many requests and mappings for the CPU
//!   have it now, so that it cannot be revoked, and who wants to know when it goes;
//! - `routes`: for each of them and each client, how the one reaches the other, or why it does not,
//!   before anybody tries; how many requests and buffers did, and how many were refused;
//! - `errors`: how many of them could not be mapped, by errno.
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
        Refused,
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
struct Show(fn(&mut fmt::Formatter<'_>) -> fmt::Result);

#[pin_data]
struct Physdma {
    #[pin]
    providers: File<Show>,
    #[pin]
    routes: File<Show>,
    #[pin]
    errors: File<Show>,
}

/// Every provider; what could not be listed is said.
fn for_each(
    f: &mut fmt::Formatter<'_>,
    mut show: impl FnMut(&mut fmt::Formatter<'_>, &Provider) -> fmt::Result,
) -> fmt::Result {
    match physdma::providers() {
        Ok(providers) => providers.iter().try_for_each(|provider| show(f, provider)),
        Err(_) => f.write_fmt(fmt!("no memory to list the providers\n")),
    }
}

fn show_providers(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str(
        "device       bar first              last               pages state    in-flight cpu-maps \
             bios holders\n",
    )?;
    for_each(f, |f, provider| {
        let range = provider.range();
        let cpu = provider.cpu_traffic().in_flight;
        let mut in_flight = cpu;
        provider.for_each_client(|traffic| in_flight += traffic.in_flight);
        f.write_fmt(fmt!(
            "{} {:3} {:#018x} {:#018x} {:5} {:8} {:9} {:8} {:8}",
            range.device().address(),
            range.bar(),
            range.first(),
            range.last(),
            if provider.has_pages() { "yes" } else { "no" },
            if provider.is_revoked() {
                "revoked"
            } else {
                "open"
            },
            in_flight,
            cpu,
            provider.bio_traffic().in_flight,
        ))?;
        let mut result = Ok(());
        let mut joint = " ";
        provider.for_each_holder(|name| {
            result = result.and_then(|()| f.write_fmt(fmt!("{joint}{name}")));
            joint = ", ";
        });
        result?;
        f.write_str("\n")
    })
}

fn show_routes(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_fmt(fmt!(
        "provider     bar client       hops mapped     in-flight  refused    route\n"
    ))?;
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
    f.write_fmt(fmt!("{} {:3} ", range.device().address(), range.bar()))?;
    match traffic.client {
        Some(client) => f.write_fmt(fmt!("{}", client.name()))?,
        None => f.write_fmt(fmt!("{}", "-"))?,
    }
    let route = match traffic.route {
        Ok(_) if provider.is_revoked() => Err(Refused::Revoked),
        route => route,
    };
    match route {
        Ok((_, hops)) => f.write_fmt(fmt!(" {hops:4}"))?,
        Err(_) => f.write_fmt(fmt!("    -"))?,
    }
    f.write_fmt(fmt!(
        " {:10} {:10} {:10} ",
        traffic.mapped,
        traffic.in_flight,
        traffic.refused
    ))?;
    match route {
        Ok((Route::HostBridge, _)) => f.write_fmt(fmt!("host bridge\n")),
        Ok((Route::Bus { offset }, _)) => f.write_fmt(fmt!("bus address, offset {offset:#x}\n")),
        Ok((Route::Internal { bar, .. }, _)) => f.write_fmt(fmt!("internal, BAR {bar}\n")),
        Err(refused) => f.write_fmt(fmt!("refused: {refused}\n")),
    }
}

fn show_errors(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    // The kernel may be built without names of its own.
    let names = [
        (EINVAL, "EINVAL"),
        (EFAULT, "EFAULT"),
        (ENODEV, "ENODEV"),
        (EPERM, "EPERM"),
        (ENOMEM, "ENOMEM"),
    ];
    physdma::failures().try_for_each(|(errno, times)| {
        let name = names.iter().find(|(known, _)| Some(*known) == errno);
        let name = name.map_or("other", |(_, name)| name);
        f.write_fmt(fmt!("{name} {times}\n"))
    })
}

/// A file that shows what `show` does.
fn file<'a>(dir: &'a Dir, name: &'static CStr, show: Show) -> impl PinInit<File<Show>> + 'a {
    dir.read_callback_file(name, show, &|show: &Show, f: &mut fmt::Formatter<'_>| {
        (show.0)(f)
    })
}

impl kernel::InPlaceModule for Physdma {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            let dir = Dir::new(c"physdma");
            Ok(try_pin_init!(Self {
                providers <- file(&dir, c"providers", Show(show_providers)),
                routes <- file(&dir, c"routes", Show(show_routes)),
                errors <- file(&dir, c"errors", Show(show_errors)),
            }))
        })
    }
}

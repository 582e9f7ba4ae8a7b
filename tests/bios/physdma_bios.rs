// SPDX-License-Identifier: GPL-2.0

//! By which tests have a disk do what kernel code can ask of it: I/O to memory without pages.
//!
//! A line that is written to `physdma_bios/io` in debugfs is one bio, with as many pieces of memory
//! as are named:
//!
//! ```text
//! read|write <disk> <sector> <physical address>:<bytes>...
//! ```
//!
//! or a copy from the start of one disk to another one's, by way of a window of memory:
//!
//! ```text
//! copy <disk> <disk> <bytes> <physical address>:<bytes> <bytes of a bio> <pieces of a bio>
//! ```
//!
//! As many bios as the window has room for are on their way at once; the pieces of each are in
//! reverse order, so that no two are neighbours. The write fails as the first bio did that failed.

use kernel::{
    block::bio::{
        Bio,
        BlockDevice,
        Direction,
        Mode, //
    },
    debugfs,
    io::PhysAddr,
    physdma::PhysBvec,
    prelude::*,
    str::{
        parse_int::ParseInt,
        BStr,
        CString, //
    },
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        Arc,
        Completion, //
    },
    uaccess::UserSliceReader, //
};

/// The longest line in bytes.
const LINE: usize = 4096;

/// Bytes of a sector.
const SECTOR: u64 = 512;

fn number<T: ParseInt>(text: &str) -> Result<T> {
    T::from_str(BStr::from_bytes(text.as_bytes()))
}

/// A piece of memory: `<physical address>:<bytes>`.
fn piece(text: &str) -> Result<PhysBvec> {
    let (at, len) = text.split_once(':').ok_or(EINVAL)?;
    PhysBvec::new(number(at)?, number(len)?).ok_or(EINVAL)
}

fn open(path: &str, mode: Mode) -> Result<Arc<BlockDevice>> {
    let path = CString::try_from_fmt(fmt!("{path}"))?;
    BlockDevice::open(&path, mode)
}

/// Bios that are on their way together.
#[pin_data]
struct Batch {
    /// How many there are, and one for whoever waits.
    left: Atomic<i32>,
    /// The errno of the first that failed, negative, or 0.
    error: Atomic<i32>,
    #[pin]
    ended: Completion,
}

impl Batch {
    fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                left: Atomic::new(1),
                error: Atomic::new(0),
                ended <- Completion::new(),
            }),
            GFP_KERNEL,
        )
    }

    fn submit(self: &Arc<Self>, bio: Bio) -> Result {
        let batch = self.clone();
        self.left.fetch_add(1, Relaxed);
        bio.submit(move |result| batch.end(result))
            .inspect_err(|_| self.end(Ok(())))
    }

    fn end(&self, result: Result) {
        if let Err(e) = result {
            let _ = self.error.cmpxchg(0, e.to_errno(), Relaxed);
        }
        if self.left.fetch_add(-1, Full) == 1 {
            self.ended.complete_all();
        }
    }

    fn wait(&self) -> Result {
        self.end(Ok(()));
        self.ended.wait_for_completion();
        kernel::error::to_result(self.error.load(Relaxed))
    }
}

/// A copy from disk to disk.
struct Copy {
    from: Arc<BlockDevice>,
    to: Arc<BlockDevice>,
    bytes: u64,
    window: PhysBvec,
    /// Of a bio, in bytes.
    chunk: u32,
    /// Of a bio.
    pieces: u16,
}

impl Copy {
    fn parse<'l>(mut word: impl FnMut() -> Result<&'l str>) -> Result<Self> {
        let copy = Self {
            from: open(word()?, Mode::Read)?,
            to: open(word()?, Mode::ReadWrite)?,
            bytes: number(word()?)?,
            window: piece(word()?)?,
            chunk: number(word()?)?,
            pieces: number(word()?)?,
        };
        let chunk = u64::from(copy.chunk);
        if chunk == 0
            || copy.pieces == 0
            || copy.window.len() < copy.chunk
            || copy.chunk % u32::from(copy.pieces) != 0
            || chunk % SECTOR != 0
            || copy.bytes % chunk != 0
        {
            return Err(EINVAL);
        }
        Ok(copy)
    }

    /// Moves one chunk between byte `at` of a disk and part number `slot` of the window.
    fn bio(
        &self,
        disk: &Arc<BlockDevice>,
        direction: Direction,
        at: u64,
        slot: u32,
    ) -> Result<Bio> {
        let mut bio = Bio::new(disk, direction, at / SECTOR, self.pieces)?;
        let len = self
            .chunk
            .checked_div(u32::from(self.pieces))
            .ok_or(EINVAL)?;
        for number in (0..u32::from(self.pieces)).rev() {
            let offset = slot * self.chunk + number * len;
            let phys = self.window.phys() + PhysAddr::from(offset);
            bio.add(PhysBvec::new(phys, len).ok_or(EINVAL)?)?;
        }
        Ok(bio)
    }

    fn run(&self) -> Result {
        let chunk = u64::from(self.chunk);
        let slots = self.window.len().checked_div(self.chunk).ok_or(EINVAL)?;
        let mut at = 0;
        while at < self.bytes {
            // CAST: Not more than `slots`.
            let now = ((self.bytes - at) / chunk).min(slots.into()) as u32;
            for (disk, direction) in [(&self.from, Direction::Read), (&self.to, Direction::Write)] {
                let batch = Batch::new()?;
                let submitted = (0..now).try_for_each(|slot| {
                    batch.submit(self.bio(disk, direction, at + u64::from(slot) * chunk, slot)?)
                });
                batch.wait()?;
                submitted?;
            }
            at += u64::from(now) * chunk;
        }
        Ok(())
    }
}

fn one<'l>(direction: Direction, mode: Mode, mut word: impl FnMut() -> Result<&'l str>) -> Result {
    let disk = open(word()?, mode)?;
    let sector = number(word()?)?;
    let mut bio = Bio::new(&disk, direction, sector, Bio::MAX_PIECES)?;
    while let Ok(text) = word() {
        bio.add(piece(text)?)?;
    }
    bio.submit_and_wait()
}

/// What is written to the file.
fn write(_: &(), reader: &mut UserSliceReader) -> Result {
    let mut line = KVec::new();
    if reader.len() > LINE {
        return Err(E2BIG);
    }
    reader.clone_reader().read_all(&mut line, GFP_KERNEL)?;
    reader.skip(line.len())?;
    let line = core::str::from_utf8(&line).map_err(|_| EINVAL)?;
    let mut words = line.split_ascii_whitespace();
    let mut word = || words.next().ok_or(EINVAL);

    match word()? {
        "read" => one(Direction::Read, Mode::Read, word),
        "write" => one(Direction::Write, Mode::ReadWrite, word),
        "copy" => Copy::parse(word)?.run(),
        _ => Err(EINVAL),
    }
}

#[pin_data]
struct Bios {
    #[pin]
    _file: debugfs::File<()>,
    _dir: debugfs::Dir,
}

impl kernel::InPlaceModule for Bios {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(|| {
            let dir = debugfs::Dir::new(c"physdma_bios");
            Ok(try_pin_init!(Self {
                _file <- dir.write_callback_file(c"io", (), &write),
                _dir: dir.clone(),
            }))
        })
    }
}

module! {
    type: Bios,
    name: "physdma_bios",
    authors: ["The physdma authors"],
    description: "Block I/O to memory without pages, by hand",
    license: "GPL",
}

//! A device that does nothing, for measuring everything else.

use super::{
    Answer, Backend, Completions, Device, Extent, ExtentFlags, Kind, Limits, Request, Token, scatter,
};
use crate::error::Result;

/// How a null device behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct NullOptions {
    /// Reads fill their buffers with zeroes; without it they leave the buffers as they are.
    pub read_zeroes: bool,
    /// Says that it is unallocated everywhere; without it, that it is data everywhere.
    pub unallocated: bool,
}

/// Succeeds at once at everything; what is written is gone.
#[derive(Debug)]
pub struct Null {
    options: NullOptions,
    completions: Completions,
}

impl Null {
    /// A null device of `length` bytes.
    pub fn device(length: u64, limits: Limits, options: NullOptions) -> Result<Device> {
        Device::new(length, limits, |completions| Ok(Self { options, completions }))
    }
}

impl Backend for Null {
    fn submit(&self, token: Token, request: &Request<'_>) -> Answer {
        match request.kind {
            Kind::Read if self.options.read_zeroes => {
                const ZEROES: [u8; 64 << 10] = [0; 64 << 10];
                let mut at = 0;
                while at < request.range.len() {
                    let length = (request.range.len() - at).min(ZEROES.len() as u64);
                    scatter(request.iov, at, &ZEROES[..length as usize]);
                    at += length;
                }
            }
            Kind::Extents => {
                let flags = if self.options.unallocated { ExtentFlags::HOLE } else { ExtentFlags::DATA };
                // A request that was given up meanwhile needs no answer.
                let _ = self.completions.extent(token, Extent { length: request.range.len(), flags });
            }
            _ => {}
        }
        Answer::Done(Ok(()))
    }

    fn supports(&self, kind: Kind) -> bool {
        kind != Kind::Extents || self.options.unallocated
    }
}

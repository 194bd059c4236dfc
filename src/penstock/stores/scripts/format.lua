-- Decide a batch over limits that many processes share. The same arithmetic as penstock/_core/decision.py, which explains
-- it; a test holds the two together, number by number. All of it happens at one moment of the server's clock, or not at
-- all.
--
-- The script is this file and then asked, plain, rows, limits, flows, bookings and decide.lua, one after the other: each
-- uses the names of those before it. Here: what the script is given and what it replies, its constants, and how numbers are
-- packed.
--
-- KEYS[1]      what this owner was told last, so that a batch that is sent again is decided once: the number
--              of the batch, the reply and a checksum
-- KEYS[2..]    per name a hash: t the terms, r the row, and a checksum of it, the key and the terms
-- ARGV[1]      packed doubles: now (0: the server's), owner, number of the batch, whether an absent row counts as used
--              up, names, then per name: how many limits, and five numbers for each; then the operations
-- ARGV[2..]    per name the terms
-- Reply        packed doubles: now, then per name its epoch, the verdicts, and three numbers per limit;
--              or {now, name, terms, ...} of names with other terms, and nothing was decided

local BUCKET, CALENDAR, WINDOW = 0, 1, 2
local LOG, RENEWED = 0, 2
local ACQUIRE, GIVE_BACK, CHARGE, PAUSE, LOWER, RENEW, FLOW, LEAVE, RESUME = 1, 2, 3, 4, 5, 6, 7, 8, 9
local LEAD, GRACE, AGAIN_LEAST, AGAIN_MOST, LATE, FORGET, FLOWS, NEVER = 0.020, 0.020, 0.001, 0.050, 0.020, 1, 128, -1e9
local KEY, OF, TAG, AHEAD = 1, 2, 3, 4  -- of an entry of a flow, as in _core/flows.py
local RANK, BOOK, DROP, SERIES = 10, 11, 12, 13
-- Of a booking, as in _core/bookings.py.
local ID, DUE, PRIORITY, WAITED, AGED, WHOSE, START, MEMBER_START, SHARE, AMOUNTS = 1, 2, 3, 4, 5, 6, 7, 8, 9, 9
local BOOKED, NEW, ALONE, MOST, TARDY, EXPIRED, AGEING = -0.5, -1e9, -1e9, 128, 0.050, 0.5, 30
local IN_LINE, IN_LINE_FOR = -0.25, 0.25
local KEPT_IF_EMPTY = 2592000  -- where an absent row counts as used up, idle rows are kept for 30 days
local REFUNDS, LONGEST_LOG, KEPT_LONGER, TOLD_FOR, LONGEST_KEPT = 32, 256, 3600, 600, 1e9
local ROUNDING = 1 + 1e-12
local max, min, ceil, floor, huge = math.max, math.min, math.ceil, math.floor, math.huge
local format = {}

local function format_of(many)
  local form = format[many]
  if not form then form = '>' .. string.rep('d', many); format[many] = form end
  return form
end

local function read(bytes)  -- packed doubles as a table, in pieces that fit Lua's stack
  local count = #bytes / 8
  local first = min(count, 200)
  local numbers, at = {struct.unpack(format_of(first), bytes)}, 1 + 8 * first
  numbers[first + 1] = nil  -- where it ended
  while at <= #bytes do
    local piece, had = min(count - #numbers, 200), #numbers
    local got = {struct.unpack(format_of(piece), bytes, at)}
    for i = 1, piece do numbers[had + i] = got[i] end
    at = at + 8 * piece
  end
  return numbers
end

local function pack(numbers)
  local pieces, at = {}, 1
  while at <= #numbers do
    local piece = min(#numbers - at + 1, 200)
    pieces[#pieces + 1] = struct.pack(format_of(piece), unpack(numbers, at, at + piece - 1))
    at = at + piece
  end
  return table.concat(pieces)
end

-- Bytes with a checksum of them and of `beside` at their end, as in penstock/stores/redis.py. What is damaged is an error
-- and never a grant; and what is whole was written by this script, so nothing in it needs to be looked at.
local CHECKSUM = 16
local function sealed(bytes, beside) return bytes .. string.sub(redis.sha1hex(bytes .. beside), 1, CHECKSUM) end
local function opened(bytes, beside)  -- without its checksum; nil: it is damaged
  local inner = string.sub(bytes, 1, -1 - CHECKSUM)
  return sealed(inner, beside) == bytes and inner or nil
end

local function is_of_another_type(reply)  -- whether a key was not read because somebody has put something else there
  return string.find(reply.err, 'WRONGTYPE', 1, true)
end

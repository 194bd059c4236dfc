-- Decide a batch over limits that many processes share. The same arithmetic as penstock/_core/ledger.py, which explains it; a test
-- holds the two together, number by number. All of it happens at one moment of the server's clock, or not at all.
--
-- KEYS[1]      what this owner was told last, so that a batch that is sent again is decided once
-- KEYS[2..]    per name a hash: t the terms, r the row
-- ARGV[1]      packed doubles: now (0: the server's), owner, number of the batch, whether an absent row counts as used up, names,
--              then per name: how many limits, and five numbers for each; then the operations
-- ARGV[2..]    per name the terms
-- Reply        packed doubles: now, then per name its epoch, the verdicts, and three numbers per limit;
--              or {now, name, terms, ...} of names with other terms, and nothing was decided

local BUCKET, CALENDAR, WINDOW = 0, 1, 2
local LOG, RENEWED = 0, 2
local ACQUIRE, GIVE_BACK, CHARGE, PAUSE, LOWER, RENEW, FLOW, LEAVE, RESUME = 1, 2, 3, 4, 5, 6, 7, 8, 9
local LEAD, GRACE, AGAIN_LEAST, AGAIN_MOST, LATE, FORGET, FLOWS, NEVER = 0.020, 0.020, 0.001, 0.050, 0.020, 1, 128, -1e9
local KEY, OF, TAG, AHEAD = 1, 2, 3, 4  -- of an entry of a flow, as in _core/flows.py
local RANK, PLACE, DROP = 10, 11, 12
local ID, DUE, PRIORITY, WAITED, AGED, WHOSE, START, MEMBER_START, SHARE, AMOUNTS = 1, 2, 3, 4, 5, 6, 7, 8, 9, 9  -- of a booking, as in _core/bookings.py
local BOOKED, NEW, ALONE, MOST, TARDY, EXPIRED, AGEING = -0.5, -1e9, -1e9, 128, 0.050, 0.5, 30
local KEPT_IF_EMPTY = 2592000  -- where an absent row counts as used up, idle rows are kept for 30 days
local REFUNDS, LONGEST_LOG, KEPT_LONGER, TOLD_FOR, LONGEST_KEPT, MOST_NUMBERS = 32, 256, 3600, 600, 1e9, 1e5
local ROUNDING = 1 + 1e-12
local max, min, ceil, huge = math.max, math.min, math.ceil, math.huge
local format = {}

local function read(bytes)  -- packed doubles as a table, in pieces that fit Lua's stack
  local numbers, count, at = {}, #bytes / 8, 1
  while count > 0 do
    local piece = min(count, 200)
    local form = format[piece]
    if not form then form = '>' .. string.rep('d', piece); format[piece] = form end
    local got = {struct.unpack(form, bytes, at)}
    local had = #numbers
    for i = 1, piece do numbers[had + i] = got[i] end
    at, count = at + 8 * piece, count - piece
  end
  return numbers
end

local function pack(numbers)
  local pieces, at = {}, 1
  while at <= #numbers do
    local piece = min(#numbers - at + 1, 200)
    pieces[#pieces + 1] = struct.pack('>' .. string.rep('d', piece), unpack(numbers, at, at + piece - 1))
    at = at + piece
  end
  return table.concat(pieces)
end

local function sound(bytes, limits)  -- whether a row is what was once written: all numbers finite, none cut off, nothing below 0 that cannot be
  if #bytes % 8 ~= 0 or #bytes < 16 or #bytes > 8 * MOST_NUMBERS then return false end
  local numbers = read(bytes)
  local had, at = #numbers, 3
  for i = 1, had do
    if not (numbers[i] > -huge and numbers[i] < huge) then return false end
  end
  for limit = 1, limits do
    local size = numbers[at + 4]
    if not size or size < 0 or size % 1 ~= 0 or at + 4 + 3 * size > had then return false end
    for i = at, at + 3 do
      if numbers[i] < 0 then return false end
    end
    for i = at + 7, at + 4 + 3 * size, 3 do
      if numbers[i] < 0 then return false end
    end
    at = at + 5 + 3 * size
  end
  local count = numbers[at]
  if not count or count < 0 or count > MOST or count % 1 ~= 0 then return false end
  local width = AMOUNTS + limits
  local left = had - at - width * count
  if left < 0 or left % 4 ~= 0 or left > 4 * FLOWS then return false end
  for begin = at, at + width * (count - 1), width do
    if numbers[begin + AGED] <= 0 then return false end
    for i = begin + SHARE, begin + width do
      if numbers[i] < 0 then return false end
    end
  end
  return true
end

local asked = read(ARGV[1])
local now, owner, number, remembers, names = asked[1], asked[2], asked[3], asked[4], asked[5]
local position = 6

local told = redis.call('GET', KEYS[1])
if told and struct.unpack('>d', told) == number then return string.sub(told, 9) end

if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local born = remembers == 1 and now or -1  -- the moment before which what is not there counts as forgotten

-- Take the rows apart, and let the time since they were written pass.

local kind, first, second, third = {}, {}, {}, {}       -- the limits, counted through all names from 1
local pause, last, used, what, entries, epochs = {}, {}, {}, {}, {}, {}
local begins, born_at, others, flows, row_of = {}, {}, {}, {}, {}  -- flows: per name its entries
local booked = {}  -- per name its bookings
local limits = 0

for name = 1, names do
  local row = redis.call('HMGET', KEYS[name + 1], 't', 'r')
  local terms, bytes = row[1], row[2]
  if terms and terms ~= ARGV[name + 1] then
    others[#others + 1] = name
    others[#others + 1] = terms
  end
  local count = asked[position]
  position = position + 1
  begins[name] = limits
  if bytes and #others == 0 and not sound(bytes, count) then return redis.error_reply('DAMAGED ' .. name) end
  local numbers = bytes and #others == 0 and read(bytes)
  local at, passed = 3, 0
  if numbers then
    born_at[name] = numbers[2]
    passed = max(0, now - numbers[1]) / 1e6
  else
    born_at[name] = now
  end
  for limit = limits + 1, limits + count do
    local k, a, b, c = asked[position], asked[position + 1], asked[position + 2], asked[position + 3]
    position = position + 5
    kind[limit], first[limit], second[limit], third[limit] = k, a, b, c
    epochs[limit], row_of[limit] = born_at[name], name
    local p, l, u, w, log = 0, 0, 0, 0, {}
    if numbers then
      p, l, u, w = numbers[at], numbers[at + 1], numbers[at + 2], numbers[at + 3]
      local size = numbers[at + 4]
      at = at + 5
      for i = 1, size do
        log[i] = {numbers[at], numbers[at + 1], numbers[at + 2]}
        at = at + 3
      end
      if k == BUCKET then
        u = max(0, u - passed * a)
        if u == 0 then log = {} end
      elseif k == CALENDAR then
        if now >= w and now < c then
          u, w = 0, now < b and b or c
        end
      else
        local latest, all = now + ceil(b * 1e6) + l * 1e6, log  -- the clock may have stepped back
        log = {}
        for i = 1, #all do
          local entry = all[i]
          if entry[1] > now then
            entry[1] = min(entry[1], latest)
            log[#log + 1] = entry
          end
        end
      end
      p, l = max(0, p - passed), max(0, l - passed)
    else
      local lost, age = born >= 0, (now - born) / 1e6
      if k == BUCKET then
        if lost then u = max(0, b - age * a) end
      elseif k == CALENDAR then
        if now < c then w = now < b and b or c end
        if lost and born < w and now - born < w - now then u = a end
      elseif lost and age < b then
        log[1] = {born + ceil(b * 1e6), 0, a}
      end
    end
    pause[limit], last[limit], used[limit], what[limit], entries[limit] = p, l, u, w, log
  end
  local known, bookings = {}, {}
  if numbers then
    local width, bound = AMOUNTS + count, numbers[at]
    at = at + 1
    for i = 1, bound do
      local booking = {unpack(numbers, at, at + width - 1)}
      booking[DUE], booking[WAITED] = booking[DUE] - passed, booking[WAITED] + passed
      if booking[DUE] >= -EXPIRED then bookings[#bookings + 1] = booking end
      at = at + width
    end
    while at < #numbers do
      known[#known + 1] = {numbers[at], numbers[at + 1], numbers[at + 2], numbers[at + 3] - passed}
      at = at + 4
    end
  end
  flows[name], booked[name] = known, bookings
  limits = limits + count
end
begins[names + 1] = limits
if #others > 0 then return {struct.pack('>d', now), unpack(others)} end

-- Decide.

local stopped, any_stopped, verdicts, said = {}, false, {}, 0

local function say(value)
  said = said + 1
  verdicts[said] = value
end

-- How far each bucket may fill up before somebody has to wait; of anything else, and where there is a pause, it is not that simple.
local free_until = {}
for limit = 1, limits do
  local a, b = first[limit], second[limit]
  local plain = kind[limit] == BUCKET and third[limit] == 0 and pause[limit] == 0 and #booked[row_of[limit]] == 0
  free_until[limit] = plain and b + 0.5e-6 * a + 1e-12 * b or -1
end

local function total(log)
  local sum = 0
  for i = 1, #log do sum = sum + log[i][3] end
  return sum
end

local function earlier(one, other) return one[1] < other[1] end

local function insert(log, entry)  -- in order of `until`, after its equals
  local at = #log + 1
  while at > 1 and log[at - 1][1] > entry[1] do at = at - 1 end
  table.insert(log, at, entry)
end

local function wait_of(limit, amount)  -- seconds until `amount` could be charged
  local k, a, b = kind[limit], first[limit], second[limit]
  if k == BUCKET then
    local need = amount
    if third[limit] ~= 0 then need = min(amount, b) end
    local over = used[limit] + need - b
    if over > 0.5e-6 * a + 1e-12 * b then return over / a end
    return 0
  elseif k == CALENDAR then
    if now >= what[limit] then return 1e-6 end
    if used[limit] + amount - a * ROUNDING > 0 then return (what[limit] - now) / 1e6 end
    return 0
  end
  local log = entries[limit]
  local over = total(log) + amount - a * ROUNDING
  if over <= 0 then return 0 end
  if third[limit] ~= RENEWED then
    for i = 1, #log do
      over = over - log[i][3]
      if over <= 0 then return (log[i][1] - now) / 1e6 end
    end
  end
  return huge
end

local function charge(limit, amount, after)  -- at the moment now + after; returns the receipt
  local k, a = kind[limit], first[limit]
  last[limit] = max(last[limit], after)
  if k == BUCKET then
    used[limit] = max(used[limit], after * a) + amount
    what[limit] = what[limit] + amount
    return what[limit]
  elseif k == CALENDAR then
    used[limit] = used[limit] + amount
    return what[limit]
  end
  local log, ends = entries[limit], now + ceil((after + second[limit]) * 1e6)
  if third[limit] == RENEWED then
    for i = 1, #log do
      if log[i][2] == owner then
        local entry = table.remove(log, i)
        entry[1] = max(entry[1], ends)
        entry[3] = entry[3] + amount
        insert(log, entry)
        return ends
      end
    end
  end
  insert(log, {ends, owner, amount})
  if third[limit] == LOG and #log > LONGEST_LOG then
    local merged = {}
    for i = 1, #log - 1, 2 do
      merged[#merged + 1] = {log[i + 1][1], log[i + 1][2], log[i][3] + log[i + 1][3]}
    end
    if #log % 2 == 1 then merged[#merged + 1] = log[#log] end
    entries[limit] = merged
  end
  return ends
end

local function charged_since(limit, receipt)  -- what a bucket charged after that receipt, and was not given back
  local log, back = entries[limit], 0
  for i = 1, #log do
    if log[i][1] > receipt then back = back + log[i][3] end
  end
  return max(0, what[limit] - receipt - back)
end

local function remember(refunds, receipt, amount)
  local at = #refunds + 1
  while at > 1 and refunds[at - 1][1] > receipt do at = at - 1 end
  if at > 1 and refunds[at - 1][1] == receipt then
    refunds[at - 1][3] = refunds[at - 1][3] + amount
    return
  end
  table.insert(refunds, at, {receipt, 0, amount})
  if #refunds > REFUNDS then
    refunds[1][3] = refunds[1][3] + refunds[2][3]
    table.remove(refunds, 2)
  end
end

local function seconds_of(limit)  -- in which one unit flows in
  if kind[limit] == WINDOW and third[limit] == LOG then return second[limit] / first[limit] end
  return 1 / first[limit]
end

-- Of the flow whose the requests that follow are: its entries, and seconds of throughput that it may have, and has had.
local mine, room, back, inverse, spent, ahead = nil, huge, 0, 1, 0, -huge

local function enter(known, key, of, before, next)  -- before: where it begins among those that have bookings
  local entry, least, its_ahead = nil, huge, 0
  for i = 1, #known do
    local one = known[i]
    if one[OF] == of then
      if one[KEY] == key then
        entry = one
      elseif one[AHEAD] > -GRACE then
        local tag = one[TAG] + max(0, -one[AHEAD])
        if tag < least then least, its_ahead = tag, one[AHEAD] end
      end
    end
  end
  local turn = (next or before == huge) and min(least, before) or before
  if not entry then
    entry = {key, of, turn < huge and turn or 0, NEVER}
    known[#known + 1] = entry
  elseif entry[AHEAD] > NEVER and entry[AHEAD] < 0 and turn < huge then
    entry[TAG] = max(entry[TAG], min(entry[TAG] - entry[AHEAD], turn))
  end
  local its_room = least + LEAD - entry[TAG]
  if its_room < room then room, back = its_room, its_ahead end
  return entry
end

local function close_turn()
  if mine and ahead > -huge then
    for i = 1, #mine do mine[i][TAG], mine[i][AHEAD] = mine[i][TAG] + spent, max(mine[i][AHEAD], ahead) end
  end
end

local function kept(entries)
  local known = {}
  for i = 1, #entries do
    if entries[i][AHEAD] > -FORGET then known[#known + 1] = entries[i] end
  end
  if #known > FLOWS then  -- those that wait, flows before members, and had least
    table.sort(known, function(one, other)
      local away, gone = one[AHEAD] <= -GRACE, other[AHEAD] <= -GRACE
      if away ~= gone then return gone end
      if (one[OF] == 0) ~= (other[OF] == 0) then return one[OF] == 0 end
      return one[TAG] < other[TAG]
    end)
  end
  return known
end

-- Bookings, as in _core/bookings.py.

local priority, waited, ageing, payer = 0, 0, AGEING, -1  -- of the requests that follow: rank, age, and the name that knows their flow
local place_number, place_due, place_within = 0, NEW, -1  -- and of the next one

local function level_of(urgency, age, step) return urgency + math.floor(age / step + 1e-9) end

local function asker_of(share)  -- what a request passes others by: its priority, age and ageing, and of its flow the key, start, start of the member, and share
  if mine then share = share * inverse end
  local plain = {priority, waited, ageing, 0, 0, ALONE, share}
  if not mine then return plain, plain end
  return {priority, waited, ageing, mine[1][KEY], mine[1][TAG] + spent, mine[2] and mine[2][TAG] + spent or ALONE, share}, plain
end

local function rank(asker, booking)  -- above 0: the request goes before the booking; below 0: the other way round
  if asker[1] ~= booking[PRIORITY] then
    local above = level_of(asker[1], asker[2], asker[3]) - level_of(booking[PRIORITY], booking[WAITED], booking[AGED])
    if above ~= 0 then return above end
  end
  local share, other, apart, wide = asker[7], booking[SHARE], 0, true
  if booking[WHOSE] == asker[4] then
    apart = booking[MEMBER_START] - asker[6]
  else
    apart = booking[START] - asker[5]
    wide = asker[6] == ALONE and booking[MEMBER_START] == ALONE
  end
  if apart > (wide and LEAD + share + other or min(LEAD, other / 2)) then return 1 end
  return -apart > (wide and LEAD + share + other or min(LEAD, share / 2)) and -1 or 0
end

local function needs_at(booking) return booking[ID] ~= 0 and booking[DUE] or 0 end  -- of those that are kept as one, nobody knows

local function before(bookings, asker, claims)  -- those that a request must not delay, by their moments
  local found = {}
  for i = 1, #bookings do
    local booking = bookings[i]
    if booking[DUE] >= -TARDY and (booking[ID] ~= 0 or not claims) then
      local order = rank(asker, booking)
      if order < 0 or (order == 0 and not claims) then
        local at = #found + 1
        while at > 1 and needs_at(found[at - 1]) > needs_at(booking) do at = at - 1 end
        table.insert(found, at, booking)
      end
    end
  end
  return found
end

local function need_of(limit, amount) return third[limit] ~= 0 and min(amount, second[limit]) or amount end

local function delays(found, column, limit, amount, after)  -- whether a charge then leaves too little for one of these at its moment
  local a, b = first[limit], second[limit]
  local without, there = max(0, used[limit] - after * a), after
  local debt, grain = without + amount, 0.5e-6 * a + 1e-12 * b
  for i = 1, #found do
    local booking = found[i]
    if booking[column] ~= 0 then
      local moment = max(needs_at(booking), there)
      without = max(0, without - (moment - there) * a) + booking[column]
      debt = max(0, debt - (moment - there) * a) + booking[column]
      if debt <= without + grain then return false end  -- what was charged has flowed in again
      if debt > b + grain then return true end
      there = moment
    end
  end
  return false
end

local function take_booking(bookings, id, due, amounts)
  for i = 1, #bookings do
    if bookings[i][ID] == id then return table.remove(bookings, i) end
  end
  for i = 1, #bookings do
    local booking = bookings[i]
    if booking[ID] == 0 and due <= booking[DUE] + EXPIRED then
      local left = 0
      for j = 1, #amounts do
        booking[AMOUNTS + j] = max(0, booking[AMOUNTS + j] - amounts[j])
        left = left + booking[AMOUNTS + j]
      end
      if left == 0 then table.remove(bookings, i) end
      return booking
    end
  end
end

local function comes_last(bookings, rest)
  local last, its_level
  for i = 1, #bookings do
    local one = bookings[i]
    if one ~= rest then
      local level = level_of(one[PRIORITY], one[WAITED], one[AGED])
      if not last or level < its_level or (level == its_level and one[DUE] > bookings[last][DUE]) then last, its_level = i, level end
    end
  end
  return last
end

local function add_booking(bookings, booking)
  bookings[#bookings + 1] = booking
  if #bookings <= MOST then return end
  local rest
  for i = 1, #bookings do
    if bookings[i][ID] == 0 then rest = bookings[i]; break end
  end
  if not rest then
    rest = bookings[comes_last(bookings)]
    rest[ID] = 0
  end
  local last = table.remove(bookings, comes_last(bookings, rest))
  rest[DUE], rest[WAITED] = max(rest[DUE], last[DUE]), max(rest[WAITED], last[WAITED])
  rest[PRIORITY] = max(rest[PRIORITY], last[PRIORITY])
  rest[START] = min(rest[START], last[START])
  for column = AMOUNTS + 1, #rest do rest[column] = rest[column] + last[column] end
end

local function starts(bookings, key, alone)  -- where a flow that comes anew begins, and a member of it
  local of_flows, last = huge, -huge
  for i = 1, #bookings do
    local booking = bookings[i]
    if alone or booking[WHOSE] == key then last = max(last, booking[alone and START or MEMBER_START])
    elseif booking[WHOSE] ~= 0 then of_flows = min(of_flows, booking[START]) end
  end
  if last <= ALONE then last = huge end
  if alone then return last, huge end
  return of_flows, last
end

local function share_of(from, upto)  -- seconds of throughput that a request takes
  local share = 0
  for i = from, upto, 2 do share = max(share, asked[i + 1] * seconds_of(asked[i] + 1)) end
  return share
end

local function amounts_of(from, upto, name)  -- what a request takes from each limit of a name
  local amounts = {}
  for limit = begins[name] + 1, begins[name + 1] do amounts[limit - begins[name]] = 0 end
  for i = from, upto, 2 do
    local limit = asked[i] + 1
    if row_of[limit] == name then amounts[limit - begins[name]] = amounts[limit - begins[name]] + asked[i + 1] end
  end
  return amounts
end

local stop = #asked
while position <= stop do
  local operation = asked[position]
  local charges = asked[position + 3]
  local one, two, full, filled = -1, -1, 0, 0
  if operation == ACQUIRE and not any_stopped and charges <= 2 then
    one = asked[position + 4] + 1
    full = used[one] + asked[position + 5]
    if charges == 2 then
      two = asked[position + 6] + 1
      filled = used[two] + asked[position + 7]
    end
  end
  if one > 0 and one ~= two and full <= free_until[one] and (two < 0 or filled <= free_until[two]) then  -- as most: all can
    place_number, place_due, place_within = 0, NEW, -1
    used[one], what[one] = full, what[one] + asked[position + 5]
    verdicts[said + 1], verdicts[said + 2] = 0, what[one]
    said = said + 2
    if mine then
      local share = asked[position + 5] * seconds_of(one)
      if two > 0 then share = max(share, asked[position + 7] * seconds_of(two)) end
      spent, ahead = spent + share * inverse, max(ahead, 0)
    end
    if two > 0 then
      used[two], what[two] = filled, what[two] + asked[position + 7]
      said = said + 1
      verdicts[said] = what[two]
    end
    position = position + 4 + 2 * charges
  elseif operation == ACQUIRE then
    local horizon, stops = asked[position + 1], asked[position + 2]
    local from = position + 4
    position = from + 2 * charges
    local longest, blocker, fixed = 0, -1, false
    for i = from, position - 1, 2 do
      local limit = asked[i] + 1
      local wait = wait_of(limit, asked[i + 1])
      if wait > 0 and kind[limit] ~= BUCKET then fixed = true end  -- what comes back all at once cannot be had in advance
      if pause[limit] > wait then wait, fixed = pause[limit], true end
      if stopped[limit] then fixed = true end
      if wait > longest or (fixed and blocker < 0) then longest, blocker = wait, limit - 1 end
    end
    if not fixed and longest > 0 then
      for i = from, position - 1, 2 do
        local limit = asked[i] + 1
        if kind[limit] == CALENDAR and now + longest * 1e6 >= what[limit] then
          fixed, blocker, longest = true, limit - 1, max(longest, (what[limit] - now) / 1e6)
        end
      end
    end
    local id, due, within = place_number, place_due, place_within
    place_number, place_due, place_within = 0, NEW, -1
    local rows, crowded, claims, passes, asker, plain = {}, false, false, true, nil, nil
    for i = from, position - 1, 2 do
      local name = row_of[asked[i] + 1]
      local known = false
      for j = 1, #rows do known = known or rows[j] == name end
      if not known then rows[#rows + 1] = name end
      crowded = crowded or #booked[name] > 0
    end
    if id ~= 0 or crowded then
      asker, plain = asker_of(share_of(from, position - 1))
      crowded = false
      for j = 1, #rows do
        local name = rows[j]
        local booking = due ~= NEW and take_booking(booked[name], id, due, amounts_of(from, position - 1, name))
        if booking then
          claims = true
          if booking[ID] ~= 0 and name == payer then asker[5], asker[6] = booking[START], booking[MEMBER_START] end
        end
        crowded = crowded or #booked[name] > 0
      end
    end
    if asker and crowded and not fixed then
      local found, all = {}, {}
      for j = 1, #rows do
        local of = rows[j] == payer and asker or plain
        found[rows[j]], all[rows[j]] = before(booked[rows[j]], of, claims), before(booked[rows[j]], of, false)
      end
      passes = longest <= horizon
      for i = from, position - 1, 2 do
        local limit = asked[i] + 1
        local column = AMOUNTS + limit - begins[row_of[limit]]
        if passes and kind[limit] == BUCKET then
          passes = not delays(found[row_of[limit]], column, limit, need_of(limit, asked[i + 1]), longest)
        end
      end
      if not passes then  -- where it was passed it goes to the end, so the next ones keep their moments
        local after_all, last_ready = 1e-6, asked[from]
        for i = from, position - 1, 2 do
          local limit = asked[i] + 1
          if kind[limit] == BUCKET then
            local column, sum = AMOUNTS + limit - begins[row_of[limit]], 0
            for _, booking in ipairs(all[row_of[limit]]) do sum = sum + booking[column] end
            local over = (used[limit] + sum + need_of(limit, asked[i + 1]) - second[limit]) / first[limit]
            if over > after_all then after_all, last_ready = over, limit - 1 end
          end
        end
        if after_all > longest then longest, blocker = after_all, last_ready end
      end
    end
    local goes = passes and longest <= horizon and not fixed
    local books = not goes and asker and longest <= within and not fixed
    if longest > 0 and spent > room and stops ~= 0 and not (fixed or crowded or claims or (id ~= 0 and not goes)) then  -- another flow's turn
      local again = min(max(spent - room, back, AGAIN_LEAST), AGAIN_MOST)
      ahead = max(ahead, again + LATE)
      say(-1 - again)
      say(-1 - (spent - room))
    elseif goes or books then
      if goes then
        say(longest)
        for i = from, position - 1, 2 do say(charge(asked[i] + 1, asked[i + 1], longest)) end
      else
        say(-1 - longest)
        say(BOOKED)
        if claims and mine then  -- it takes the next turn like all, and not one more
          if mine[2] then asker[6] = mine[2][TAG] + spent else asker[5], asker[6] = mine[1][TAG] + spent, ALONE end
          mine[#mine][TAG] = mine[#mine][TAG] + asker[7]
        end
        for j = 1, #rows do
          local name = rows[j]
          local of = name == payer and asker or plain
          add_booking(booked[name], {id, longest, priority, waited, ageing, of[4], of[5], of[6], of[7], unpack(amounts_of(from, position - 1, name))})
          for limit = begins[name] + 1, begins[name + 1] do free_until[limit] = -1 end
        end
        if claims then  -- who comes behind it is to have no place of its own beside it
          for i = from, position - 1, 2 do stopped[asked[i] + 1], any_stopped = true, true end
        end
      end
      if mine then
        if not claims then spent = spent + share_of(from, position - 1) * inverse end
        ahead = max(ahead, longest)
      end
    else
      say(-1 - longest)
      say(blocker)
      if stops ~= 0 then
        for i = from, position - 1, 2 do
          local limit = asked[i] + 1
          if not passes or wait_of(limit, asked[i + 1]) > 0 or pause[limit] > 0 then stopped[limit], any_stopped = true, true end
        end
      end
    end
  elseif operation == GIVE_BACK then
    local from = position + 2
    position = from + 4 * asked[position + 1]
    for i = from, position - 1, 4 do
      local limit, amount, receipt = asked[i] + 1, asked[i + 1], asked[i + 3]
      if asked[i + 2] == epochs[limit] then
        if kind[limit] == BUCKET then
          local least = min(used[limit], last[limit] * first[limit] + charged_since(limit, receipt))
          used[limit] = max(used[limit] - amount, least)
          remember(entries[limit], receipt, amount)
        elseif kind[limit] == CALENDAR then
          if receipt == what[limit] then used[limit] = max(0, used[limit] - amount) end
        elseif third[limit] == RENEWED or receipt > now then  -- else it has come back by itself
          local log = entries[limit]
          for j = 1, #log do
            local entry = log[j]
            if entry[2] == owner and (third[limit] == RENEWED or entry[1] >= receipt) then
              entry[3] = entry[3] - min(amount, entry[3])
              if entry[3] <= 0 then table.remove(log, j) end
              break
            end
          end
        end
      end
    end
  elseif operation == CHARGE then
    local from = position + 2
    position = from + 2 * asked[position + 1]
    for i = from, position - 1, 2 do say(charge(asked[i] + 1, asked[i + 1], 0)) end
  elseif operation == PAUSE then
    local seconds, from = asked[position + 1], position + 3
    position = from + asked[position + 2]
    for i = from, position - 1 do
      local limit = asked[i] + 1
      pause[limit] = max(pause[limit], seconds)
      if seconds > 0 then free_until[limit] = -1 end
    end
  elseif operation == RESUME then
    local from = position + 2
    position = from + asked[position + 1]
    for i = from, position - 1 do pause[asked[i] + 1] = 0 end
  elseif operation == LOWER then
    local from = position + 2
    position = from + 5 * asked[position + 1]
    for i = from, position - 1, 5 do
      local limit, level, age, epoch, receipt = asked[i] + 1, asked[i + 1], asked[i + 2], asked[i + 3], asked[i + 4]
      local a, b = first[limit], second[limit]
      if kind[limit] == BUCKET then
        if epoch == epochs[limit] then level = level + age * a - charged_since(limit, receipt) end
        local missing = b - level - used[limit]
        if missing > 0 then
          used[limit], what[limit] = used[limit] + missing, what[limit] + missing
        end
      elseif kind[limit] == CALENDAR then
        used[limit] = max(used[limit], a - level)
      elseif third[limit] == LOG then
        local missing = a - total(entries[limit]) - level
        if missing > 0 then charge(limit, missing, 0) end
      end
    end
  elseif operation == FLOW then
    close_turn()
    local key, member = asked[position + 1], asked[position + 2]
    payer = row_of[asked[position + 4] + 1]
    local known, waits = flows[payer], asked[position + 5]
    local of_flows, of_members = starts(booked[payer], key, member == 0)
    room, back, inverse, spent, ahead = huge, 0, 1 / asked[position + 3], 0, waits > 0 and waits or -huge
    mine = {enter(known, key, 0, of_flows, member ~= 0)}
    if member ~= 0 then mine[2] = enter(known, member, key, of_members, false) end
    position = position + 6
  elseif operation == LEAVE then
    local key, member, known = asked[position + 1], asked[position + 2], flows[row_of[asked[position + 4] + 1]]
    for i = 1, #known do
      local one = known[i]
      if (one[KEY] == key and one[OF] == 0) or (one[KEY] == member and one[OF] == key) then
        one[TAG], one[AHEAD] = one[TAG] - asked[position + 3], min(one[AHEAD], 0)
      end
    end
    position = position + 5
  elseif operation == RANK then
    priority, waited, ageing = asked[position + 1], asked[position + 2], asked[position + 3]
    position = position + 4
  elseif operation == PLACE then
    place_number, place_due, place_within = asked[position + 1], asked[position + 2], asked[position + 3]
    position = position + 4
  elseif operation == DROP then
    local bookings = booked[row_of[asked[position + 2] + 1]]
    for i = #bookings, 1, -1 do
      if bookings[i][ID] == asked[position + 1] then table.remove(bookings, i) end
    end
    position = position + 3
  else  -- RENEW
    local from = position + 2
    position = from + asked[position + 1]
    for i = from, position - 1 do
      local limit = asked[i] + 1
      local log = entries[limit]
      for j = 1, #log do
        if log[j][2] == owner then log[j][1] = now + ceil(second[limit] * 1e6) end
      end
      table.sort(log, earlier)
    end
  end
end

close_turn()

-- Write the rows, and say how things stand.

local reply = {now}
for name = 1, names do reply[name + 1] = born_at[name] end
for i = 1, #verdicts do reply[#reply + 1] = verdicts[i] end
for limit = 1, limits do
  local log, at = entries[limit], #reply
  reply[at + 1] = pause[limit]
  if kind[limit] == WINDOW then
    reply[at + 2], reply[at + 3] = total(log), log[1] and log[1][1] or 0
  else
    local sum = 0
    if kind[limit] == BUCKET then
      for _, booking in ipairs(booked[row_of[limit]]) do sum = sum + booking[AMOUNTS + limit - begins[row_of[limit]]] end
    end
    reply[at + 2], reply[at + 3] = used[limit] + sum, what[limit]
  end
end
for name = 1, names do
  local row, keep, at = {now, born_at[name]}, 0, 0
  for limit = begins[name] + 1, begins[name + 1] do
    local log, u, w = entries[limit], used[limit], what[limit]
    if kind[limit] == BUCKET then
      keep = max(keep, u / first[limit])
    elseif kind[limit] == CALENDAR then
      keep = max(keep, (w - now) / 1e6)
    else
      if #log > 0 then keep = max(keep, (log[#log][1] - now) / 1e6) end
    end
    keep = max(keep, pause[limit])
    at = #row
    row[at + 1], row[at + 2], row[at + 3], row[at + 4], row[at + 5] = pause[limit], last[limit], u, w, #log
    for i = 1, #log do
      at = #row
      row[at + 1], row[at + 2], row[at + 3] = log[i][1], log[i][2], log[i][3]
    end
  end
  row[#row + 1] = #booked[name]
  for _, booking in ipairs(booked[name]) do
    keep = max(keep, booking[DUE] + EXPIRED)
    for i = 1, #booking do row[#row + 1] = booking[i] end
  end
  local known = kept(flows[name])
  for i = 1, min(#known, FLOWS) do
    at = #row
    row[at + 1], row[at + 2], row[at + 3], row[at + 4] = unpack(known[i])
  end
  redis.call('HSET', KEYS[name + 1], 't', ARGV[name + 1], 'r', pack(row))
  redis.call('EXPIRE', KEYS[name + 1], ceil(min(keep, LONGEST_KEPT)) + (remembers == 1 and KEPT_IF_EMPTY or KEPT_LONGER))
end
local bytes = pack(reply)
redis.call('SET', KEYS[1], struct.pack('>d', number) .. bytes, 'EX', TOLD_FOR)
return bytes

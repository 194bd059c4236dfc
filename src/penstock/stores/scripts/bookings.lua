-- Bookings: when requests are to come again, as in penstock/_core/bookings.py.

-- Of the requests that follow: rank, age, and the name that knows their flow.
local priority, waited, ageing, payer = 0, 0, AGEING, -1
local booking_number, booking_due, booking_within = 0, NEW, -1  -- and of the next one
local lined = {}  -- flows and priorities that were given bookings for places

local function level_of(urgency, age, step) return urgency + math.floor(age / step + 1e-9) end

-- What a request passes others by: its priority, age and ageing, and of its flow the key, start, start of the member,
-- and share.
local function asker_of(share)
  if mine then share = share * inverse end
  local plain = {priority, waited, ageing, 0, 0, ALONE, share}
  if not mine then return plain, plain end
  local member_start = mine[2] and mine[2][TAG] + spent or ALONE
  return {priority, waited, ageing, mine[1][KEY], mine[1][TAG] + spent, member_start, share}, plain
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

local function needs_at(booking)  -- unknown of those that are kept as one
  return booking[ID] ~= 0 and booking[DUE] or 0
end

local function of_number(bookings, id)
  for i = 1, #bookings do
    if bookings[i][ID] == id then return bookings[i], i end
  end
end

local function before(bookings, asker, id, claims)  -- those that a request must not delay, by their moments
  local found, of_its_own = {}, id ~= 0 and of_number(bookings, id)
  local own = of_its_own and of_its_own[DUE] or huge
  for i = 1, #bookings do
    local booking = bookings[i]
    if booking[DUE] >= -TARDY and (booking[ID] == 0 and not claims or booking[ID] ~= 0 and booking[ID] ~= id) then
      local order = rank(asker, booking)
      if order < 0 or (order == 0 and not claims and needs_at(booking) < own) then
        local at = #found + 1
        while at > 1 and needs_at(found[at - 1]) > needs_at(booking) do at = at - 1 end
        table.insert(found, at, booking)
      end
    end
  end
  return found
end

-- As `rank`; but those without a flow do not pass each other, as they have turns and no throughput.
local function rank_for_places(asker, booking)
  if asker[6] ~= ALONE or booking[MEMBER_START] ~= ALONE then return rank(asker, booking) end
  if asker[1] == booking[PRIORITY] then return 0 end
  return level_of(asker[1], asker[2], asker[3]) - level_of(booking[PRIORITY], booking[WAITED], booking[AGED])
end

local function ahead_of_place(bookings, asker, position, column)  -- what those take that go before a request
  local sum = 0
  for i = 1, #bookings do
    local booking = bookings[i]
    if booking[column] ~= 0 and booking[ID] ~= 0 then
      local order = rank_for_places(asker, booking)
      if order < 0 or (order == 0 and i < position) then sum = sum + booking[column] end
    end
  end
  return sum
end

local function next_in_line(limit)  -- the number of the booking that can have its places now; 0: there is none
  local name, first = row_of[limit], nil
  local bookings, column = booked[name], AMOUNTS + limit - begins[name]
  for i = 1, #bookings do
    local one = bookings[i]
    if one[column] ~= 0 and one[ID] ~= 0 then
      local passes = not first or rank_for_places(
        {one[PRIORITY], one[WAITED], one[AGED], one[WHOSE], one[START], one[MEMBER_START], one[SHARE]}, first) > 0
      if passes then first = one end
    end
  end
  if not first then return 0 end
  for of = begins[name] + 1, begins[name + 1] do
    if is_places(of) and wait_of(of, first[AMOUNTS + of - begins[name]]) > 0 then return 0 end
  end
  return first[ID]
end

local function is_in_line(name, id)  -- whether the booking of that number is for places
  local booking = id ~= 0 and of_number(booked[name], id)
  if not booking then return false end
  for limit = begins[name] + 1, begins[name + 1] do
    if is_places(limit) and booking[AMOUNTS + limit - begins[name]] ~= 0 then return true end
  end
  return false
end

local function need_of(limit, amount) return third[limit] ~= 0 and min(amount, second[limit]) or amount end

-- Whether a charge then leaves too little for one of these at its moment.
local function delays(found, column, limit, amount, after)
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
  local _, at = of_number(bookings, id)
  if at then return table.remove(bookings, at) end
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
      if not last or level < its_level or (level == its_level and one[DUE] > bookings[last][DUE]) then
        last, its_level = i, level
      end
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

local function amounts_of(from, upto, name, places)  -- what it takes from each limit of a name: of places, or others
  local amounts = {}
  for limit = begins[name] + 1, begins[name + 1] do amounts[limit - begins[name]] = 0 end
  for i = from, upto, 2 do
    local limit = asked[i] + 1
    if row_of[limit] == name and is_places(limit) == (places or false) then amounts[limit - begins[name]] = amounts[limit - begins[name]] + asked[i + 1] end
  end
  return amounts
end
